"""Which kernels there are: a series such as ``6.12`` to the newest exact version on offer."""

import contextlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cmp_to_key
from pathlib import Path

from kwhy.errors import FeatureError, UsageError
from kwhy.lab.apt import Apt, Package, Unreachable
from kwhy.lab.paths import cache_dir, remove
from kwhy.lab.progress import Progress

#: The series the lab is made for, and the Debian release whose suites carry each.
#: ``7`` is the newest 7.x there is: backports keep one series at a time.
SERIES: dict[str, str] = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "bookworm", "7": "trixie"}

_FLAVOUR = "cloud-amd64"
_IMAGE = re.compile(rf"linux-image-(?P<release>\d.*-{_FLAVOUR})")


@dataclass(frozen=True)
class KernelVersion:
    """One exact kernel: enough to name every package of it."""

    version: str  # of the Debian packages, "6.12.117-1~deb12u1"
    release: str  # what `uname -r` says, "6.12.117+deb12-cloud-amd64"
    debian: str  # the Debian release it comes from, "bookworm"

    @property
    def series(self) -> str:
        """The first two numbers: ``6.12``."""
        return ".".join(self.version.split(".")[:2]).split("-")[0]

    @property
    def directory(self) -> Path:
        """Where its files are cached."""
        return cache_dir() / "kernels" / self.version.replace(":", "_")

    @property
    def image_package(self) -> Package:
        """The package with the kernel, or since 7.x the one that depends on its parts."""
        return Package(f"linux-image-{self.release}", self.version)

    @property
    def source_package(self) -> Package:
        """The package with the source, Debian's patches applied."""
        return Package(f"linux-source-{self.series}", self.version)

    @property
    def debug_package(self) -> Package:
        """The package with the DWARF vmlinux and modules."""
        return Package(f"linux-image-{self.release}-dbg", self.version)

    def matches(self, wanted: str) -> bool:
        """Whether ``wanted`` (a series, an exact version or a release) means this kernel."""
        upstream = self.version.split("-")[0]
        return wanted in (self.version, self.release, upstream) or upstream.startswith(wanted + ".")


def resolve(wanted: str, progress: Progress | None = None) -> KernelVersion:
    """The newest kernel that ``wanted`` means: a series, a version or a ``uname -r``.

    Offline, that is the newest one in the cache. Raises UsageError when there is no such kernel,
    FeatureError when the mirror cannot be asked and the cache has none.
    """
    if not re.fullmatch(r"\d+(\.\d+)*[\w.+~-]*", wanted):
        raise UsageError(f"{wanted!r} is neither a kernel version nor a running guest")
    exact = [kernel for kernel in cached_kernels() if wanted in (kernel.version, kernel.release)]
    if exact:
        return exact[0]
    debian = debian_release(wanted)
    try:
        offered = offered_kernels(debian, progress or Progress())
        matching = [kernel for kernel in offered if kernel.matches(wanted)]
        for kernel in newest_first(matching):
            if is_available(kernel):
                return kernel
    except Unreachable as error:
        found = _newest_cached(wanted)
        if found is None:
            raise FeatureError(
                f"no kernel {wanted} in the cache, and {error}", "debian-mirror"
            ) from None
        return found
    found = _newest_cached(wanted)
    if found is None:
        known = sorted({kernel.series for kernel in offered}) or ["none"]
        raise UsageError(
            f"Debian {debian} has no kernel {wanted} with debug symbols and source"
            f" (it has {', '.join(known)}; see `kwhy lab list`)"
        )
    return found


def _newest_cached(wanted: str) -> KernelVersion | None:
    """The newest kernel in the cache, those with debug symbols first."""
    matching = newest_first([kernel for kernel in cached_kernels() if kernel.matches(wanted)])
    with_debug = [kernel for kernel in matching if (kernel.directory / "debug").is_dir()]
    return next(iter(with_debug or matching), None)


def is_available(kernel: KernelVersion) -> bool:
    """Whether everything of a kernel is cached or can really be downloaded; asked once.

    The lists of a security suite name versions whose files the mirror no longer has.
    Raises Unreachable.
    """
    apt = Apt(kernel.debian)
    remembered = apt.tree / "available.json"
    try:
        known: dict[str, bool] = json.loads(remembered.read_text())
    except (OSError, ValueError):
        known = {}
    parts = {
        "image": kernel.image_package,
        "debug": kernel.debug_package,
        "source": kernel.source_package,
    }
    for part, package in parts.items():
        key = f"{package.name}={package.version}"
        if (kernel.directory / part).is_dir() or known.get(key):
            continue
        # A file that was gone does not come back, but a mirror may catch up with its lists.
        if key not in known or apt.lists_time() > remembered.stat().st_mtime:
            known[key] = apt.available(package, kernel.directory / "debs")
            remembered.write_text(json.dumps(known))
        if not known[key]:
            with contextlib.suppress(OSError):
                remove(kernel.directory / "debs")
                kernel.directory.rmdir()  # unless something of it is cached
            return False
    return True


def debian_release(wanted: str) -> str:
    """The Debian release to ask for a series or a version."""
    for series, release in SERIES.items():
        if wanted == series or wanted.startswith((series + ".", series + "-")):
            return release
    return "trixie"


def offered_kernels(debian: str, progress: Progress) -> list[KernelVersion]:
    """The kernels on the mirror that have image, debug symbols and source in one version.

    Read from the package lists once after each update of those. Raises Unreachable if there are
    no lists and the mirror does not answer.
    """
    apt = Apt(debian)
    try:
        apt.refresh(progress)
    except Unreachable:
        if not apt.has_lists:
            raise
    remembered = apt.tree / "kernels.json"
    stamp = (apt.tree / "updated").stat().st_mtime_ns
    try:
        known = json.loads(remembered.read_text())
        if known["updated"] == stamp:
            return [KernelVersion(**fields) for fields in known["kernels"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    images = [name for name in apt.package_names("linux-image-") if _IMAGE.fullmatch(name)]
    series = {match[1] for name in images if (match := re.match(r"linux-image-(\d+\.\d+)", name))}
    names = [*images, *(f"{name}-dbg" for name in images)]
    names += [f"linux-source-{number}" for number in sorted(series)]
    kernels = complete_kernels(apt.versions(names), debian)
    facts = {"updated": stamp, "kernels": [asdict(kernel) for kernel in kernels]}
    remembered.write_text(json.dumps(facts))
    return kernels


def complete_kernels(packages: list[Package], debian: str) -> list[KernelVersion]:
    """Of all versions of image, debug and source packages, the kernels that have all three.

    Meta packages (``linux-image-6.12-cloud-amd64``) name no exact kernel and are left out: theirs
    is not followed by the version that the package has.
    """
    offered = set(packages)
    result = []
    for package in sorted(offered, key=lambda package: (package.name, package.version)):
        match = _IMAGE.fullmatch(package.name)
        if not match or match["release"] in (f"{_series_of(package.version)}-{_FLAVOUR}",):
            continue
        kernel = KernelVersion(package.version, match["release"], debian)
        if {kernel.debug_package, kernel.source_package} <= offered:
            result.append(kernel)
    return result


def _series_of(version: str) -> str:
    return ".".join(version.split(".")[:2])


def newest_first(kernels: list[KernelVersion]) -> list[KernelVersion]:
    """Ordered by Debian version, the highest first."""
    order = cmp_to_key(compare_versions)
    return sorted(kernels, key=lambda kernel: order(kernel.version), reverse=True)


def cached_kernels() -> list[KernelVersion]:
    """The kernels whose image is in the cache, newest first."""
    result = []
    for path in (cache_dir() / "kernels").glob("*/kernel.json"):
        try:
            kernel = KernelVersion(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue
        if (kernel.directory / "image").is_dir():
            result.append(kernel)
    return newest_first(result)


def by_release(release: str) -> KernelVersion | None:
    """The kernel in the cache whose ``uname -r`` is ``release``."""
    return next((kernel for kernel in cached_kernels() if kernel.release == release), None)


def compare_versions(one: str, other: str) -> int:
    """Order Debian versions as dpkg does: negative, zero or positive (deb-version(7))."""
    epoch_one, upstream_one, revision_one = _split_version(one)
    epoch_other, upstream_other, revision_other = _split_version(other)
    return (
        (epoch_one > epoch_other) - (epoch_one < epoch_other)
        or _compare_part(upstream_one, upstream_other)
        or _compare_part(revision_one, revision_other)
    )


def _split_version(version: str) -> tuple[int, str, str]:
    epoch, colon, rest = version.rpartition(":")
    upstream, dash, revision = rest.rpartition("-")
    return int(epoch) if colon else 0, upstream if dash else revision, revision if dash else ""


def _compare_part(one: str, other: str) -> int:
    # Alternating runs of non-digits (letters first, ~ before the end) and numbers.
    pairs_one = re.findall(r"(\D*)(\d*)", one)
    pairs_other = re.findall(r"(\D*)(\d*)", other)
    for index in range(max(len(pairs_one), len(pairs_other))):
        text_one, number_one = pairs_one[index] if index < len(pairs_one) else ("", "")
        text_other, number_other = pairs_other[index] if index < len(pairs_other) else ("", "")
        key_one = [*map(_letter_order, text_one), 0], int(number_one or 0)
        key_other = [*map(_letter_order, text_other), 0], int(number_other or 0)
        if key_one != key_other:
            return -1 if key_one < key_other else 1
    return 0


def _letter_order(letter: str) -> int:
    if letter == "~":
        return -1
    return ord(letter) if letter.isalpha() else ord(letter) + 256
