"""Source positions of instructions: inlined frames with file, line and column, by drgn."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kwhy.case.evidence import JSON


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """``function`` textually contains the instruction's statement at ``file``:``line``:``column``.

    ``file`` is relative to the kernel's source tree; ``column`` counts from 1, 0 if unknown.
    """

    function: str
    file: str
    line: int
    column: int


# Debian's 5.10 compiles in /build/linux-XXXXXX/linux-5.10.Y/debian/build/build_amd64_.../, where
# the sources are reached through ../../../ or absolute names; later ones use -fdebug-prefix-map.
_BUILD = re.compile(
    r"^(?:/build/[^/]+/|/usr/src/(?:debug/)?)?(?:[^/]*linux[^/]*/)?(?:debian/build/[^/]+/)?"
)
_TOP = re.compile(
    r"(?:^|/)((?:arch|block|certs|crypto|drivers|fs|include|init|io_uring|ipc|kernel|lib|mm|net|"
    r"rust|samples|scripts|security|sound|tools|usr|virt)/.*)$"
)


def relative_file(name: str) -> str:
    """A DWARF file name as the source tree has it: "drivers/tty/tty_jobctrl.c"."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == ".." and parts and parts[-1] not in ("", ".."):
            parts.pop()
        elif part != ".":
            parts.append(part)
    text = "/".join(parts)
    if text.startswith("/"):
        text = _BUILD.sub("", text, count=1).lstrip("/")
        # A build directory with another name: the first known top-level directory counts.
        if (found := _TOP.search(text)) and not _TOP.match(text):
            text = found[1]
    return text.removeprefix("../").lstrip("/")


class LineTables:
    """A drgn program that holds debug files at their run-time addresses, and nothing else."""

    def __init__(self, read: Any = None) -> None:
        self._read = read
        self.loaded: set[str] = set()
        self._names: dict[str, str] = {}

    @cached_property
    def program(self) -> Any:
        """The drgn.Program (imported late: kwhy's start must stay quick)."""
        import drgn

        flags = drgn.PlatformFlags.IS_64_BIT | drgn.PlatformFlags.IS_LITTLE_ENDIAN
        program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64, flags))
        if self._read is not None:
            read = self._read
            program.add_memory_segment(
                0, (1 << 64) - 1, lambda address, count, _offset, _physical: read(address, count)
            )
        return program

    def add_image(self, path: Path, build_id: str, start: int, size: int) -> None:
        """Load vmlinux so that its first segment is at run-time address ``start``.

        An ExtraModule with one address range gets its bias from that range (drgn's documentation);
        a MainModule would take it from a VMCOREINFO note, which not every evidence has.
        """
        module = self.program.extra_module("vmlinux", create=True)
        module.address_ranges = [(start, start + size)]
        if build_id:
            module.build_id = bytes.fromhex(build_id)
        module.try_file(path)
        self.loaded.add("vmlinux")

    def add_module(
        self, name: str, path: Path, sections: dict[str, int], ranges: Sequence[tuple[int, int]]
    ) -> None:
        """Load a .ko's debug info, its ``sections`` at their addresses, inside (address, size)s."""
        if name in self.loaded:
            return
        self.loaded.add(name)
        base = sections.get(".text") or min(sections.values())
        module = self.program.relocatable_module(name, base, create=True)
        module.address_ranges = [(start, start + size) for start, size in ranges]
        for section, address in sections.items():
            module.section_addresses[section] = address
        module.try_file(path, force=True)  # find_module compared the build-ids

    def frames(self, address: int) -> list[SourceFrame]:
        """Innermost inline first, the out-of-line function last; [] if nothing is known."""
        try:
            found = self.program.source_location(address)
        except LookupError:
            return []
        places = [(f.name() or "", self._file(f.filename), f.line, f.column) for f in found]
        return [SourceFrame(*place) for place in places if place[1] or place[2]]

    def _file(self, name: str) -> str:
        short = self._names.get(name)
        if short is None:
            short = self._names[name] = relative_file(name)
        return short


def to_json(frames: Sequence[SourceFrame]) -> JSON:
    """Frames as a case stores them."""
    return [[f.function, f.file, f.line, f.column] for f in frames]


def from_json(data: JSON) -> list[SourceFrame]:
    """The reverse of ``to_json``; anything malformed is left out."""
    out = []
    for row in data if isinstance(data, list) else []:
        match row:
            case [str(function), str(file), int(line), int(column)]:
                out.append(SourceFrame(function, file, line, column))
    return out
