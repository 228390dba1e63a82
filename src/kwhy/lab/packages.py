"""Debian packages unpacked, not installed: the manual's pages, and programs to put into a guest."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from kwhy.errors import FeatureError
from kwhy.lab.apt import Apt
from kwhy.lab.fetch import unpack
from kwhy.lab.paths import cache_dir, make_once, remove
from kwhy.lab.progress import Progress
from kwhy.lab.rootfs import SUITE

_MANUAL = ["manpages", "manpages-dev", "liburing-dev"]


def manual_dir(fetch: bool = False, progress: Progress | None = None) -> Path | None:
    """The directory with man2/, man3/, ... of Debian's manual pages, None if not fetched.

    With ``fetch`` it is fetched first (2 MB). Raises FeatureError then.
    """
    place = cache_dir() / "manual" / hashlib.sha256(" ".join(_MANUAL).encode()).hexdigest()[:16]
    if fetch:
        make_once(
            place,
            "waiting for another kwhy that fetches the manual",
            lambda temporary: _unpack_packages(_MANUAL, temporary, progress or Progress()),
        )
    pages = place / "usr" / "share" / "man"
    return pages if pages.is_dir() else None


def guest_packages(names: Iterable[str], progress: Progress | None = None) -> Path:
    """Packages and all they depend on, unpacked in one directory, for ``Settings.files``.

    ``Settings(files={"/": guest_packages(["trace-cmd", "strace"])})`` makes them available in a
    guest. They are of the guest's own Debian release. Raises FeatureError.
    """
    wanted = sorted(set(names))
    key = hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:16]
    shown = progress or Progress()

    def make(temporary: Path) -> None:
        apt = Apt(SUITE)
        apt.refresh(shown)
        # What minbase has is there already; the rest of the closure is not looked into.
        _unpack_packages(apt.closure(wanted), temporary, shown, skip=_IN_EVERY_GUEST)
        for useless in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"):
            remove(temporary / useless)

    return make_once(
        cache_dir() / "packages" / key, f"waiting for another kwhy that fetches {wanted}", make
    )


#: Of what programs commonly depend on, the packages in the guests' root file system.
_IN_EVERY_GUEST = frozenset(
    ["libc6", "libgcc-s1", "gcc-12-base", "libcrypt1", "zlib1g", "liblzma5", "libzstd1"]
    + ["libselinux1", "libpcre2-8-0", "libssl3", "libcap2", "libtinfo6", "libblkid1", "libmount1"]
    + ["libuuid1", "libsmartcols1", "libbz2-1.0", "libacl1", "libattr1", "dpkg", "perl-base"]
    + ["tar", "debconf"]
)


def _unpack_packages(
    names: list[str], out: Path, progress: Progress, skip: frozenset[str] = frozenset()
) -> None:
    apt = Apt(SUITE)
    if not apt.has_lists:
        apt.refresh(progress)
    packages = []
    for name in names:
        if name in skip:
            continue
        versions = [each for each in apt.versions([name]) if each.name == name]
        if not versions:
            raise FeatureError(f"Debian {SUITE} has no package {name}", "debian-mirror")
        packages.append(versions[0])  # madison lists the newest first
    debs = out.with_name(f"{out.name}.debs")
    out.mkdir(parents=True, exist_ok=True)
    for path in apt.download(packages, debs, progress):
        unpack(path, out)
    remove(debs)
