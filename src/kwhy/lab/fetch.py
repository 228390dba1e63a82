"""The files of one kernel: downloaded and unpacked part by part, each once, into the cache."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from kwhy.errors import FeatureError
from kwhy.lab.apt import Apt, Package, Unreachable
from kwhy.lab.kernels import KernelVersion, cached_kernels
from kwhy.lab.paths import locked, make_once, remove
from kwhy.lab.progress import Progress

PARTS = ("image", "debug", "source", "headers")

#: Directories of the source package that no line table of an x86-64 cloud kernel names.
#: They are two thirds of what there is to write.
_SOURCE_EXCLUDED = [
    "*/Documentation",
    "*/tools/testing",
    "*/tools/perf",
    "*/drivers/gpu/drm/amd",
    "*/drivers/gpu/drm/i915",
    "*/drivers/gpu/drm/nouveau",
    "*/drivers/net/wireless",
    "*/drivers/staging",
    "*/drivers/media",
    "*/drivers/infiniband",
    "*/sound",
    "*/arch/[a-wyz]*",
    "*/arch/xtensa",
    "*/debian",
]


@dataclass(frozen=True)
class KernelFiles:
    """What is in the cache for one kernel; a part not asked for may be None."""

    kernel: KernelVersion
    vmlinuz: Path
    modules_dir: Path  # holds kernel/, modules.order, ...
    vmlinux_debug: Path | None  # ELF with DWARF and symbols
    debug_dir: Path | None  # below it kernel/.../*.ko.debug or *.ko, as in modules_dir
    source_dir: Path | None  # holds drivers/, fs/, include/, ...
    headers_dir: Path | None  # the root below which usr/src/linux-headers-... lies

    @property
    def release(self) -> str:
        """What ``uname -r`` says there."""
        return self.kernel.release


def get(
    kernel: KernelVersion, parts: Iterable[str] = ("image",), progress: Progress | None = None
) -> KernelFiles:
    """Make sure that ``parts`` (of :data:`PARTS`; the image always) of ``kernel`` are cached.

    Raises Unreachable (a FeatureError) when something is missing and cannot be downloaded.
    """
    shown = progress or Progress()
    for part in dict.fromkeys(["image", *parts]):
        _get_part(kernel, part, shown)
    return files(kernel)


def get_newest(
    kernel: KernelVersion, parts: Iterable[str] = ("image",), progress: Progress | None = None
) -> KernelFiles:
    """Like :func:`get`, but offline an older version of the same series will do."""
    wanted = list(parts)
    try:
        return get(kernel, wanted, progress)
    except Unreachable:
        older = [
            other
            for other in cached_kernels()
            if other.series == kernel.series
            and all((other.directory / part).is_dir() for part in wanted)
        ]
        if not older:
            raise
        return files(older[0])


def files(kernel: KernelVersion) -> KernelFiles:
    """What the cache holds of ``kernel`` now, without fetching; the image must be there."""
    base = kernel.directory
    modules = base / "image" / "modules"
    return KernelFiles(
        kernel=kernel,
        vmlinuz=base / "image" / "vmlinuz",
        modules_dir=modules,
        vmlinux_debug=_if_there(base / "debug" / "vmlinux"),
        debug_dir=_if_there(base / "debug"),
        source_dir=_if_there(base / "source"),
        headers_dir=_if_there(base / "headers"),
    )


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None


def _get_part(kernel: KernelVersion, part: str, progress: Progress) -> None:
    makers: dict[str, Callable[[KernelVersion, Path, Progress], None]] = {
        "image": _make_image,
        "debug": _make_debug,
        "source": _make_source,
        "headers": _make_headers,
    }
    make_once(
        kernel.directory / part,
        f"waiting for another kwhy that fetches the {part} of {kernel.release}",
        lambda temporary: makers[part](kernel, temporary, progress),
    )
    facts = kernel.directory / "kernel.json"
    if not facts.exists():
        facts.write_text(json.dumps(asdict(kernel)))


def _make_image(kernel: KernelVersion, out: Path, progress: Progress) -> None:
    """vmlinuz, modules/ (with modules.dep) from the image packages."""
    apt = Apt(kernel.debian)
    names = [f"linux-image-{kernel.release}"]
    # Since 7.x the image package is empty and depends on these.
    split = [f"linux-{what}-{kernel.release}" for what in ("base", "binary", "modules")]
    names += sorted({package.name for package in apt.versions(split)})
    with _debs(kernel, names, progress) as debs:
        root = out / "root"
        for deb in debs:
            unpack(deb, root, ["./boot/*", "./lib/modules/*", "./usr/lib/modules/*"])
        merged = root / "usr" / "lib" / "modules"
        modules = merged if merged.is_dir() else root / "lib" / "modules"
        (modules / kernel.release).rename(out / "modules")
        # Since 7.x the kernel lies beside its modules.
        boot = root / "boot" / f"vmlinuz-{kernel.release}"
        (boot if boot.exists() else out / "modules" / "vmlinuz").rename(out / "vmlinuz")
        remove(root)
    _depmod(out, kernel.release)


def _depmod(out: Path, release: str) -> None:
    """modules.dep and friends, which Debian makes at installation time."""
    base = out / "depmod" / "lib" / "modules"
    base.mkdir(parents=True)
    (base / release).symlink_to(out / "modules")
    tool = shutil.which("depmod", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    run([tool or "depmod", "-b", str(out / "depmod"), release], "kmod")
    remove(out / "depmod")


def _make_debug(kernel: KernelVersion, out: Path, progress: Progress) -> None:
    """vmlinux and kernel/**.ko.debug from the -dbg package (some 2 GB)."""
    with _debs(kernel, [kernel.debug_package.name], progress) as debs:
        with progress.step(f"unpacking the debug symbols of {kernel.release}"):
            unpack(debs[0], out / "root", ["./usr/lib/debug/*"])
        debug = out / "root" / "usr" / "lib" / "debug"
        # Since 7.x boot/vmlinux-* is a link to the file beside the modules.
        (debug / "boot" / f"vmlinux-{kernel.release}").resolve().rename(out / "vmlinux")
        for place in (debug / "lib" / "modules", debug / "usr" / "lib" / "modules"):
            if (place / kernel.release / "kernel").is_dir():
                (place / kernel.release / "kernel").rename(out / "kernel")
        remove(out / "root")
        if not (out / "vmlinux").is_file():
            raise FeatureError(f"{debs[0].name} holds no vmlinux where it is expected", "debuginfo")


def _make_source(kernel: KernelVersion, out: Path, progress: Progress) -> None:
    """The source tree from the source package, less what no x86 line table names."""
    with (
        _debs(kernel, [kernel.source_package.name], progress) as debs,
        progress.step(f"unpacking the source of {kernel.version}"),
    ):
        out.mkdir(parents=True)
        outer = subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(debs[0])], stdout=subprocess.PIPE
        )
        middle = subprocess.Popen(
            ["tar", "-xO", "--wildcards", "./usr/src/linux-source-*.tar.xz"],
            stdin=outer.stdout,
            stdout=subprocess.PIPE,
        )
        unxz = subprocess.Popen(["xz", "-dc", "-T0"], stdin=middle.stdout, stdout=subprocess.PIPE)
        for process in (outer, middle, unxz):
            assert process.stdout is not None
        excluded = [f"--exclude={pattern}" for pattern in _SOURCE_EXCLUDED]
        done = subprocess.run(
            ["tar", "-x", "-C", str(out), "--strip-components=1", *excluded],
            stdin=unxz.stdout,
            check=False,
        )
        # Our copies of the read ends would keep a writer alive after its reader died.
        for process in (outer, middle, unxz):
            assert process.stdout is not None
            process.stdout.close()
        codes = [process.wait() for process in (outer, middle, unxz)]
        if done.returncode or any(codes):
            raise FeatureError(f"cannot unpack {debs[0].name}: is the disk full?", "disk")


def _make_headers(kernel: KernelVersion, out: Path, progress: Progress) -> None:
    """What compiling a module needs: usr/src, usr/lib/linux-kbuild-*, libraries for its tools."""
    apt = Apt(kernel.debian)
    apt.refresh(progress)
    first = Package(f"linux-headers-{kernel.release}", kernel.version)
    names = [first.name]
    for dependency in apt.dependencies(first):
        name = dependency.split()[0]
        if name.startswith(("linux-headers-", "linux-kbuild-", "linux-compiler-")):
            names.append(name)
    with _debs(kernel, names, progress) as debs:
        for deb in debs:
            unpack(deb, out, ["./usr/src/*", "./usr/lib/linux-*", "./lib/modules/*"])
    tools = [name for name in names if name.startswith("linux-kbuild-")]
    libraries = [name for name in apt.closure(tools) if name.startswith("lib")]
    with _debs(kernel, libraries, progress) as debs:
        for deb in debs:
            unpack(deb, out / "libraries", ["./lib/*", "./lib64/*", "./usr/lib/*", "./usr/lib64/*"])
    _wrap_tools(out)
    # The package expects to be installed.
    makefile = out / "usr" / "src" / f"linux-headers-{kernel.release}" / "Makefile"
    place = kernel.directory / "headers" / "usr" / "src"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{place}/"))


def _wrap_tools(root: Path) -> None:
    """Let the programs of linux-kbuild run with the C library of their own Debian release.

    Theirs may be newer than ours, and the libraries they need are not installed here.
    """
    loader = next(root.glob("libraries/**/ld-linux-x86-64.so.2"), None)
    if loader is None:
        return
    places = ("lib", "usr/lib")
    paths = [root / "libraries" / place / "x86_64-linux-gnu" for place in places]
    for tool in [path for path in root.glob("usr/lib/linux-*/**/*") if path.is_file()]:
        if tool.is_symlink() or not os.access(tool, os.X_OK):
            continue
        if any(tool.parent.glob(f"{tool.name}.real-*")):
            continue  # picks one of those by its own name, and needs nothing new to do so
        with tool.open("rb") as file:
            if file.read(4) != b"\x7fELF":
                continue
        real = tool.with_name(f"{tool.name}.elf")
        tool.rename(real)
        up = os.path.relpath(root, tool.parent)
        search = ":".join(f"$here/{up}/{path.relative_to(root)}" for path in paths)
        tool.write_text(
            '#!/bin/sh\nhere=$(dirname "$0")\n'
            f'exec "$here/{up}/{loader.relative_to(root)}" --library-path "{search}"'
            f' "$here/{real.name}" "$@"\n'
        )
        tool.chmod(0o755)


@contextmanager
def _debs(kernel: KernelVersion, names: list[str], progress: Progress) -> Iterator[list[Path]]:
    """Download packages of a kernel; when the block ends well, delete them: they are unpacked."""
    apt = Apt(kernel.debian)
    if not apt.has_lists:
        apt.refresh(progress)
    offered = apt.versions(names)
    packages = []
    for name in names:
        # The helper packages of old series (linux-kbuild-5.10) have one version for many kernels.
        same = [package for package in offered if package.name == name]
        exact = [package for package in same if package.version == kernel.version]
        if not same:
            raise Unreachable(
                f"{name} {kernel.version} is no longer on the mirror and not in the cache"
            )
        packages.append((exact or same)[0])
    paths = apt.download(packages, kernel.directory / "debs", progress)
    yield paths
    for path in paths:
        path.unlink(missing_ok=True)


def unpack(deb: Path, into: Path, patterns: list[str] | None = None) -> None:
    """Unpack the files of a package that match ``patterns`` (tar's wildcards; None: all)."""
    into.mkdir(parents=True, exist_ok=True)
    reader = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
    command = ["tar", "-x", "-C", str(into), "--no-same-owner"]
    if patterns:
        # --wildcards with members that match nothing is an error for tar; here it is none.
        command += ["--wildcards", "--warning=none", *patterns]
    done = subprocess.run(command, stdin=reader.stdout, capture_output=True, text=True, check=False)
    assert reader.stdout is not None
    reader.stdout.close()
    reader.wait()
    missing_only = all(
        "Not found in archive" in line or "Exiting with failure" in line
        for line in done.stderr.splitlines()
    )
    if done.returncode and not missing_only:
        raise FeatureError(f"cannot unpack {deb.name}: {done.stderr.strip()}", "disk")


def run(command: list[str], package: str) -> str:
    """Run a tool of the lab. Raises FeatureError naming the package it is in."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise FeatureError(
            f"the lab needs {command[0]}: apt-get install {package}", package
        ) from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise FeatureError(f"{command[0]} failed: {' '.join(last) or done.returncode}", package)
    return done.stdout


def downloaded(kernel: KernelVersion) -> list[str]:
    """The parts of ``kernel`` that are in the cache."""
    return [part for part in PARTS if (kernel.directory / part).is_dir()]


def forget(kernel: KernelVersion) -> None:
    """Delete a kernel from the cache."""
    with locked(kernel.directory.with_suffix(".lock"), "waiting for another kwhy"):
        remove(kernel.directory)
