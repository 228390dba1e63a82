"""The little of ELF64 that a kernel model needs: sections, segments, notes and the symbol table.

Little-endian only (x86_64, arm64).  The file is mapped, not read: a debug vmlinux has 340 MB.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwhy.errors import InputError

SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("shndx", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)
"""Elf64_Sym (elf(5))."""

PT_LOAD, SHT_NOBITS, NT_GNU_BUILD_ID = 1, 8, 3


def notes(data: bytes) -> list[tuple[bytes, int, bytes]]:
    """(name, type, description) of each ELF note in ``data``; a damaged tail is ignored."""
    out, at = [], 0
    while at + 12 <= len(data):
        namesz, descsz, kind = struct.unpack_from("<III", data, at)
        name_at = at + 12
        desc_at = name_at + (namesz + 3 & ~3)
        end = desc_at + descsz
        if end > len(data):
            break
        out.append((data[name_at : name_at + namesz].rstrip(b"\0"), kind, data[desc_at:end]))
        at = desc_at + (descsz + 3 & ~3)
    return out


def build_id_of(data: bytes) -> str | None:
    """The build-id (hex) in a blob of ELF notes such as /sys/kernel/notes."""
    for name, kind, desc in notes(data):
        if name == b"GNU" and kind == NT_GNU_BUILD_ID:
            return desc.hex()
    return None


class ElfFile:
    """A mapped ELF64 file; raises InputError when it is not one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be opened: {error}") from error
        try:
            self._parse()
        except (struct.error, IndexError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: not a readable ELF file: {error}") from error

    def _parse(self) -> None:
        data = self._map
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("no 64-bit little-endian ELF header")
        phoff, shoff = struct.unpack_from("<QQ", data, 32)
        phentsize, phnum, shentsize, shnum, shstrndx = struct.unpack_from("<HHHHH", data, 54)
        self.segments = []
        for i in range(phnum):
            kind, flags, offset, vaddr, _paddr, filesz, memsz, _align = struct.unpack_from(
                "<IIQQQQQQ", data, phoff + i * phentsize
            )
            self.segments.append((kind, flags, offset, vaddr, filesz, memsz))
        raw = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + i * shentsize) for i in range(shnum)]
        self.sections: dict[str, tuple[Any, ...]] = {}
        self.section_list: list[tuple[str, tuple[Any, ...]]] = []
        if raw:
            names_at = raw[shstrndx][4]
            for header in raw:
                start = names_at + header[0]
                name = data[start : data.find(b"\0", start)].decode("ascii", "replace")
                self.sections.setdefault(name, header)
                self.section_list.append((name, header))

    def has_debug_info(self) -> bool:
        """Whether there is DWARF in the file."""
        header = self.sections.get(".debug_info") or self.sections.get(".zdebug_info")
        return header is not None and header[1] != SHT_NOBITS

    def section(self, name: str) -> bytes | None:
        """The bytes of a section, None if the file has none (or it occupies no file space)."""
        header = self.sections.get(name)
        if header is None or header[1] == SHT_NOBITS:
            return None
        return self._map[header[4] : header[4] + header[5]]

    def section_range(self, name: str) -> tuple[int, int] | None:
        """(address, size) of a section as linked."""
        header = self.sections.get(name)
        return None if header is None else (header[3], header[5])

    def at(self, address: int, size: int) -> bytes | None:
        """``size`` bytes at a link-time address; zeros for .bss; None outside every segment."""
        for kind, _flags, offset, vaddr, filesz, memsz in self.segments:
            if kind == PT_LOAD and vaddr <= address and address + size <= vaddr + memsz:
                if vaddr == 0:
                    continue  # the zero-based per-CPU segment is not memory at 0
                start = address - vaddr
                have = (
                    self._map[offset + start : offset + min(start + size, filesz)]
                    if start < filesz
                    else b""
                )
                return have + bytes(size - len(have))
        return None

    def build_id(self) -> str | None:
        """Hex build-id from the file's notes."""
        for name, header in self.section_list:
            if header[1] == 7:  # SHT_NOTE
                found = build_id_of(self.section(name) or b"")
                if found:
                    return found
        return None

    def release(self) -> str | None:
        """The kernel release from the "Linux version ..." banner in .rodata."""
        text = self.section(".rodata") or b""
        at = text.find(b"Linux version ")
        if at < 0:
            return None
        return text[at + 14 : text.find(b" ", at + 14)].decode("ascii", "replace")

    def symtab(self) -> tuple[NDArray[Any], bytes]:
        """The symbol table as a structured array, and its string table."""
        data, names = self.section(".symtab"), self.section(".strtab")
        if data is None or names is None:
            return np.zeros(0, SYMBOL), b""
        return np.frombuffer(data, SYMBOL, len(data) // SYMBOL.itemsize), names
