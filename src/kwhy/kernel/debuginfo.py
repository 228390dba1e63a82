"""Where debug files are: the vmlinux with DWARF and the modules' .ko files, found by build-id.

Looked for, in this order: the path the user gave, KWHY_DEBUG_PATH, the distribution's places under
/usr/lib/debug, the lab's cache, and debuginfod when DEBUGINFOD_URLS is set.  A file whose build-id
differs is never used.
"""

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from kwhy.errors import InputError, KwhyError
from kwhy.kernel.elf import ElfFile

Where = Literal["auto", "none"] | Path
SYSTEM = Path("/usr/lib/debug")


def build_id_path(root: Path, build_id: str) -> Path:
    """``root``/.build-id/ab/cdef.debug, the layout of gdb, elfutils and Debian."""
    return root / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"


def _under(root: Path, release: str, build_id: str) -> Iterator[Path]:
    """The places inside an unpacked -dbg package (or a build tree) where vmlinux may be."""
    if root.is_file():
        yield root
        return
    if build_id:
        yield build_id_path(root, build_id)
        yield build_id_path(root / "usr/lib/debug", build_id)
    for top in (root, root / "usr/lib/debug"):
        yield top / "boot" / f"vmlinux-{release}"
        yield top / f"vmlinux-{release}"
        yield top / "lib/modules" / release / "vmlinux"
    yield root / "vmlinux"


def roots(where: Where, release: str) -> Iterator[Path]:
    """Directories (or files) to search, best first."""
    if isinstance(where, Path):
        yield where
        return
    if where == "none":
        return
    for part in os.environ.get("KWHY_DEBUG_PATH", "").split(":"):
        if part:
            yield Path(part)
    yield SYSTEM
    yield Path("/lib/modules") / release / "build"
    files = lab_files(release)
    if files is not None and files.debug_dir is not None:
        yield files.debug_dir


def lab_files(release: str) -> Any:
    """What the lab's cache has of that kernel (``kwhy.lab.fetch.KernelFiles``), None if nothing.

    The lab is to the right of this room: imported only if it is there, and only asked, never made
    to download.
    """
    try:
        kernel = importlib.import_module("kwhy.lab.kernels").by_release(release)
        return None if kernel is None else importlib.import_module("kwhy.lab.fetch").files(kernel)
    except (ImportError, AttributeError, OSError, KwhyError):
        return None


def find_debug(release: str, build_id: str, where: Where = "auto") -> Path | None:
    """The vmlinux with debug info of exactly this kernel, None if nobody has it.

    Raises InputError when the user named a path and the file there belongs to another kernel.
    """
    if isinstance(where, Path) and not where.exists():
        raise InputError(f"--debuginfo {where}: there is no such file or directory")
    wrong: list[Path] = []
    for root in roots(where, release):
        for path in _under(root, release, build_id):
            if not path.is_file():
                continue
            elf = ElfFile(path)
            if not elf.has_debug_info():
                continue
            if build_id and elf.build_id() != build_id:
                wrong.append(path)
                continue
            return path
    if isinstance(where, Path):
        if wrong:
            raise InputError(
                f"{wrong[0]} is not the target's kernel {release}: its build-id differs "
                f"(the target has {build_id})"
            )
        raise InputError(f"--debuginfo {where}: no vmlinux with debug info for {release} in it")
    return _debuginfod(build_id) if where == "auto" else None


def find_module(
    release: str, name: str, build_id: str | None, where: Where = "auto"
) -> Path | None:
    """The debug .ko of module ``name`` (underscores), its build-id checked when it is known."""
    for root in roots(where, release):
        if root.is_file():
            root = root.parent.parent if root.parent.name == "boot" else root.parent
        if build_id:
            for top in (root, root / "usr/lib/debug"):
                if (path := build_id_path(top, build_id)).is_file():
                    return path
        tops = ("lib/modules", "usr/lib/debug/lib/modules", "usr/lib/debug/usr/lib/modules")
        for top in (root / "kernel", *(root / top / release for top in tops)):
            for path in _module_files(top).get(name, []):
                elf = ElfFile(path)
                if elf.has_debug_info() and (not build_id or elf.build_id() == build_id):
                    return path
    return _lab_module(name, build_id) if where == "auto" and build_id else None


def _lab_module(name: str, build_id: str) -> Path | None:
    """A module that the lab compiled, the build-id exactly right; None if there is none."""
    try:
        built: Path = importlib.import_module("kwhy.lab.paths").cache_dir() / "modules"
    except ImportError:
        return None
    for path in built.glob(f"*/{name}.ko"):
        if ElfFile(path).build_id() == build_id:
            return path
    return None


_listed: dict[Path, dict[str, list[Path]]] = {}


def _module_files(top: Path) -> dict[str, list[Path]]:
    if top not in _listed:
        files: dict[str, list[Path]] = {}
        for path in sorted(top.rglob("*.ko")) + sorted(top.rglob("*.ko.debug")):
            files.setdefault(path.name.split(".ko")[0].replace("-", "_"), []).append(path)
        _listed[top] = files
    return _listed[top]


def _debuginfod(build_id: str) -> Path | None:
    """Ask debuginfod-find(1), only if the user configured servers."""
    if not build_id or not os.environ.get("DEBUGINFOD_URLS"):
        return None
    program = shutil.which("debuginfod-find")
    if program is None:
        return None
    done = subprocess.run(
        [program, "debuginfo", build_id], capture_output=True, text=True, check=False
    )
    path = Path(done.stdout.strip())
    return path if done.returncode == 0 and path.is_file() else None
