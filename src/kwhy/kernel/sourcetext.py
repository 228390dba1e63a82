"""The text of the kernel's source files, of exactly the target's version or not at all."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from kwhy.case.diskcache import cache_dir
from kwhy.errors import InputError
from kwhy.kernel.debuginfo import lab_files

Where = Literal["auto", "none"] | Path
_MAKEFILE = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL)\s*=\s*(\d+)", re.M)
_DEBIAN = re.compile(r" #\d.*\bDebian (\d[\w.+~-]*)")
_UPSTREAM = re.compile(r"^(\d+\.\d+(?:\.\d+)?)")


def versions(release: str, banner: str) -> set[str]:
    """Upstream versions ("5.10.234") that the source may bear.

    Debian's release name of old series does not tell it ("5.10.0-34-cloud-amd64"), the version in
    the kernel's banner ("Debian 5.10.234-1") does.
    """
    if found := _DEBIAN.search(banner):
        return {m[1] for m in [_UPSTREAM.match(found[1])] if m}
    return {m[1] for m in [_UPSTREAM.match(release)] if m}


def tree_version(root: Path) -> str | None:
    """The version in a source tree's Makefile ("6.12.117"), None if it is no kernel source."""
    try:
        with (root / "Makefile").open(encoding="utf-8", errors="replace") as file:
            parts = dict(_MAKEFILE.findall(file.read(4096)))
    except OSError:
        return None
    if not {"VERSION", "PATCHLEVEL"} <= parts.keys():
        return None
    text = f"{parts['VERSION']}.{parts['PATCHLEVEL']}"
    return f"{text}.{parts['SUBLEVEL']}" if parts.get("SUBLEVEL") else text


def same_version(tree: str, wanted: set[str]) -> bool:
    """Whether a tree's version is one of ``wanted`` ("7.2" and "7.2.0" are the same)."""

    def plain(text: str) -> str:
        return text.removesuffix(".0") if text.count(".") == 2 else text

    return plain(tree) in {plain(text) for text in wanted}


def find_source(release: str, banner: str, where: Where = "auto") -> Path | None:
    """Root of the matching source tree, unpacking the distribution's archive if need be.

    Raises InputError when the user named a directory with another version's source: its lines would
    be wrong.
    """
    wanted = versions(release, banner)
    if isinstance(where, Path):
        root = _inside(where)
        version = tree_version(root)
        if version is None:
            raise InputError(
                f"--source {where}: not a kernel source tree (no Makefile with a VERSION)"
            )
        if wanted and not same_version(version, wanted):
            raise InputError(
                f"--source {where} is Linux {version}, "
                f"the target runs {' or '.join(sorted(wanted))}"
            )
        return root
    if where == "none":
        return None
    for root in _candidates(release):
        root = _inside(root)
        version = tree_version(root)
        if version is not None and same_version(version, wanted):
            return root
    return _system_archive(wanted)


def _inside(root: Path) -> Path:
    """A package's directory has the tree in usr/src/linux-source-X or linux-X."""
    if (root / "Makefile").is_file():
        return root
    for pattern in ("usr/src/linux-source-*", "linux-source-*", "linux-*"):
        for path in sorted(root.glob(pattern)):
            if (path / "Makefile").is_file():
                return path
    return root


def _candidates(release: str) -> Iterator[Path]:
    for part in os.environ.get("KWHY_SOURCE_PATH", "").split(":"):
        if part:
            yield Path(part)
    files = lab_files(release)
    if files is not None and files.source_dir is not None:
        yield files.source_dir
    yield Path("/lib/modules") / release / "source"
    yield from sorted(Path("/usr/src").glob("linux-source-*/"))


def _system_archive(wanted: set[str]) -> Path | None:
    """/usr/src/linux-source-*.tar.xz of the desk, unpacked once if it is that version."""
    for version in sorted(wanted):
        series = ".".join(version.split(".")[:2])
        archive = Path(f"/usr/src/linux-source-{series}.tar.xz")
        target = cache_dir() / "source" / version
        if (target / "Makefile").is_file():
            return target
        if not archive.is_file():
            continue
        head = subprocess.run(
            ["tar", "-xJf", archive, "-O", "--occurrence=1", f"linux-source-{series}/Makefile"],
            capture_output=True,
            check=False,
        )
        parts = dict(_MAKEFILE.findall(head.stdout[:4096].decode("utf-8", "replace")))
        if "{VERSION}.{PATCHLEVEL}.{SUBLEVEL}".format_map({"SUBLEVEL": "0", **parts}) != version:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            done = subprocess.run(
                ["tar", "-xJf", archive, "-C", scratch, "--strip-components=1"], check=False
            )
            if done.returncode == 0:
                Path(scratch).rename(target)
                Path(scratch).mkdir()  # the context manager removes what is there
                return target
    return None


def read_file(root: Path, name: str) -> str | None:
    """Text of a source file; None if absent or if the name leads outside of the tree."""
    if not name or name.startswith("/") or ".." in name.split("/"):
        return None
    path = root / name
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            return None
        return path.read_text("utf-8", "replace")
    except (OSError, ValueError):
        return None
