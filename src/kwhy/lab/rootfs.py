"""What a guest boots from: one root file system for all kernels, each kernel's modules, and a last
small archive with the guest's own programs. The three, one after the other, are its initramfs."""

import hashlib
import io
import re
import stat
import subprocess
import tarfile
from pathlib import Path

from kwhy.errors import FeatureError
from kwhy.lab.apt import KEYRING, Mirrors, machine_mirrors
from kwhy.lab.cpio import CpioWriter
from kwhy.lab.fetch import KernelFiles
from kwhy.lab.paths import cache_dir, make_once
from kwhy.lab.progress import Progress

SUITE = "bookworm"
PACKAGES = ["python3", "kmod", "mount", "procps", "libcap2-bin", "iproute2"]

#: Left out: what nothing in a guest reads. Every megabyte is unpacked by an emulated processor.
_DROPPED = re.compile(
    r"usr/share/(doc|man|info|locale|lintian|zoneinfo|perl5?|bash-completion|common-licenses"
    r"|keyrings|gcc|gdb|bug|debconf|i18n|polkit-1|pixmaps|applications|menu)/"
    r"|usr/lib/x86_64-linux-gnu/(gconv|perl|perl-base|engines-3|ossl-modules|security)/"
    r"|usr/lib/(apt|dpkg|systemd|init|tc|locale/(?!C\.utf8))/?"
    r"|usr/lib/x86_64-linux-gnu/(libperl|libapt|libdb-5|libstdc|libgnutls|libp11|libunistring"
    r"|libmvec|libsqlite3|libsepol|libsemanage)"
    r"|usr/lib/python3\.11/(pydoc_data|ensurepip|lib2to3|idlelib|test|tkinter|distutils"
    r"|unittest|sqlite3|wsgiref|xmlrpc|curses|turtledemo)/"
    r"|usr/bin/(perl|dpkg|apt|gpgv|localedef|debconf|iconv|deb-)"
    r"|usr/sbin/(tc$|arpd|e2fsck|debugfs|resize2fs|dumpe2fs|iconvconfig|ldconfig)"
    r"|var/(cache|lib|log|backups)/.|boot/|usr/games|dev/.|run/.|tmp/."
)


def image(files: KernelFiles, progress: Progress) -> list[Path]:
    """The cached archives for a kernel: root file system and modules."""
    return [root_archive(progress), modules_archive(files)]


def root_archive(progress: Progress) -> Path:
    """The root file system, made by mmdebstrap once; some 15 s. Raises FeatureError."""
    recipe = repr((SUITE, PACKAGES, _DROPPED.pattern))
    key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    return make_once(
        cache_dir() / "rootfs" / f"root-{key}.cpio",
        "waiting for another kwhy that makes the guests' root file system",
        lambda temporary: _make_root(temporary, machine_mirrors(), progress),
    )


def _make_root(out: Path, mirrors: Mirrors, progress: Progress) -> None:
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--architectures=amd64",
        f"--include={','.join(PACKAGES)}",
        '--aptopt=APT::Sandbox::User "root"',
        '--aptopt=Acquire::Languages "none"',
        # The result is thrown away if the machine dies; syncing each file takes most of the time.
        "--dpkgopt=force-unsafe-io",
        "--format=tar",
        SUITE,
        "-",
        f"deb {signed}{mirrors.debian} {SUITE} main",
    ]
    # mmdebstrap skips apt's own configuration; a proxy or a certificate set there is needed too.
    command[1:1] = [f"--aptopt={path}" for path in _apt_settings()]
    with progress.step("making the guests' root file system"), out.open("wb") as file:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except FileNotFoundError:
            raise FeatureError(
                "the lab needs mmdebstrap: apt-get install mmdebstrap", "mmdebstrap"
            ) from None
        assert process.stdout is not None and process.stderr is not None
        try:
            writer = CpioWriter(file)
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                    writer.tar(archive, lambda name: not _DROPPED.match(name))
                writer.close()
            except tarfile.ReadError:
                pass  # mmdebstrap failed; what it says on stderr tells why
            errors = process.stderr.read().decode(errors="replace").strip()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if process.wait():
            last = [line for line in errors.splitlines() if line.startswith(("E:", "W:"))][-2:]
            raise FeatureError(f"mmdebstrap failed: {' '.join(last)}", "mmdebstrap")


def _apt_settings() -> list[Path]:
    directory = Path("/etc/apt/apt.conf.d")
    wanted = re.compile(r"Acquire::(https?|Check-)", re.I)
    found = []
    for path in sorted(directory.glob("*")):
        try:
            if wanted.search(path.read_text()):
                found.append(path)
        except (OSError, UnicodeDecodeError):
            continue
    return found


def modules_archive(files: KernelFiles) -> Path:
    """All modules of a kernel with modules.dep, so that modprobe works in the guest."""

    def make(temporary: Path) -> None:
        with temporary.open("wb") as file:
            writer = CpioWriter(file)
            writer.tree(files.modules_dir, f"usr/lib/modules/{files.release}")
            writer.close()

    return make_once(
        files.kernel.directory / "modules.cpio", "waiting for another kwhy that packs modules", make
    )


def guest_archive(agent: bytes, extra: dict[str, Path] | None = None) -> bytes:
    """The last archive: init, the agent, and ``extra`` files or trees (guest path: local path)."""
    stream = io.BytesIO()
    writer = CpioWriter(stream)
    writer.file("init", guest_init(), 0o755)
    writer.file("kwhy/agent.pyz", agent, 0o755)
    writer.device("dev/console", stat.S_IFCHR | 0o600, 5, 1)
    for name, path in (extra or {}).items():
        inside = name.strip("/")
        if path.is_dir():
            writer.tree(path, inside)
        else:
            writer.file(inside, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
    writer.close()
    return stream.getvalue()


def guest_init() -> bytes:
    """The program that is process 1 in a guest."""
    return (Path(__file__).parent / "guest_init.py").read_bytes()
