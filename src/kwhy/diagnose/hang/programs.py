"""ELF files that processes have mapped: their functions' names, and how to unwind their stacks.

Everything comes from what is in memory: a program's own tables (.eh_frame, .symtab, .dynsym), which
need no debug symbols. What is not in memory is not known.
"""

import io
import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Read = Callable[[int, int], bytes | None]
"""(offset in the file, size) to bytes, None where they are not in memory."""

_MAX_TABLE = 8 << 20
_MAX_ENTRY = 64 << 10
_MAX_HEADERS = 256
_PT_LOAD, _PT_GNU_EH_FRAME = 1, 0x6474E550
_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_FUNCTIONS, _VARIABLES = (2, 10), (1,)  # STT_FUNC, STT_GNU_IFUNC; STT_OBJECT
_EH_TABLE = bytes((1, 0x1B, 3, 0x3B))  # version 1; pointers relative to themselves, to the table
_SYMBOL = np.dtype([
    ("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"),
    ("size", "<u8"),
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rule:
    """How to get to the caller's frame: CFA is ``register`` plus ``offset``.

    ``saved``: by DWARF number, where below the CFA the caller's registers are.
    """

    register: int
    offset: int
    saved: dict[int, int]


class Program:
    """One ELF file for x86-64. Addresses are those that the file was linked for."""

    def __init__(self, read: Read) -> None:
        """Raises LookupError for what is no such file, or not in memory."""
        self._read = read
        head = self._need(0, 64)
        if head[:6] != b"\x7fELF\x02\x01":
            raise LookupError("not an ELF file of 64 bits")
        at, sections = struct.unpack_from("<QQ", head, 32)
        segments, _size, listed = struct.unpack_from("<HHH", head, 56)
        self._sections = (sections, min(listed, _MAX_HEADERS))
        raw = self._need(at, 56 * min(segments, _MAX_HEADERS))
        self._segments = list(struct.iter_unpack("<IIQQQQQQ", raw))

    def _need(self, offset: int, size: int) -> bytes:
        got = self._read(offset, size) if 0 <= size <= _MAX_TABLE else None
        if got is None:
            raise LookupError("not in memory")
        return got

    def holds(self, address: int) -> bool:
        """Whether an address belongs to the program, be it to what begins as zeros."""
        return any(
            kind == _PT_LOAD and start <= address < start + size
            for kind, _flags, _offset, start, _physical, _size, size, _align in self._segments
        )

    def linked(self, offset: int) -> int:
        """The address for which the byte at a file offset was linked; raises LookupError."""
        for kind, _flags, start, address, _physical, size, _memory, _align in self._segments:
            if kind == _PT_LOAD and start <= offset < start + size:
                return int(address + offset - start)
        raise LookupError("in no segment")

    def _at(self, address: int, size: int) -> bytes:
        for kind, _flags, start, here, _physical, length, _memory, _align in self._segments:
            if kind == _PT_LOAD and here <= address < here + length:
                return self._need(start + address - here, min(size, here + length - address))
        raise LookupError("in no segment")

    # -- names -------------------------------------------------------------------------------------

    def function(self, address: int) -> tuple[str, int] | None:
        """(name, offset) of the function around an address, None where no symbol says so."""
        return self._named(address, _FUNCTIONS)

    def variable(self, address: int) -> tuple[str, int] | None:
        """The same for a variable."""
        return self._named(address, _VARIABLES)

    def _named(self, address: int, types: tuple[int, ...]) -> tuple[str, int] | None:
        for table, strings in self._symbols:
            if types not in table:
                table[types] = _sorted(table[()], types)
            starts, ends, names = table[types]
            number = int(np.searchsorted(starts, np.uint64(address), side="right")) - 1
            if number >= 0 and address < int(ends[number]):
                begin = int(names[number])
                raw = strings[begin : begin + 512].split(b"\0")[0]
                return raw.decode("utf-8", "replace"), address - int(starts[number])
        return None

    @cached_property
    def _symbols(self) -> list[tuple[dict[tuple[int, ...], Any], bytes]]:
        """(the symbols, the names) of .symtab, then of .dynsym; by types what is sorted of them."""
        found: list[tuple[dict[tuple[int, ...], Any], bytes]] = []
        try:
            raw = self._need(self._sections[0], 64 * self._sections[1])
        except LookupError:
            return []
        headers = list(struct.iter_unpack("<IIQQQQIIQQ", raw))
        for wanted in (_SHT_SYMTAB, _SHT_DYNSYM):
            for _name, kind, _flags, _address, at, size, link, *_more in headers:
                if kind != wanted or link >= len(headers):
                    continue
                try:
                    table = self._need(at, size // _SYMBOL.itemsize * _SYMBOL.itemsize)
                    strings = self._need(headers[link][4], headers[link][5])
                except LookupError:
                    continue
                found.append(({(): np.frombuffer(table, _SYMBOL)}, strings))
        return found

    # -- unwinding ---------------------------------------------------------------------------------

    def rule(self, address: int) -> Rule:
        """How to unwind at an address; raises LookupError where the tables do not tell."""
        from elftools.common.exceptions import ELFError
        from elftools.dwarf.callframe import FDE, CallFrameInfo
        from elftools.dwarf.structs import DWARFStructs

        starts, entries = self._table
        number = bisect_right(starts, address) - 1
        if number < 0:
            raise LookupError("before all functions")
        where = int(entries[number])
        entry = self._entry(where)
        common_at = where + 4 - struct.unpack_from("<I", entry, 4)[0]
        common = self._entry(common_at)
        moved = entry[:4] + struct.pack("<I", len(common) + 4) + entry[8:]
        stream = io.BytesIO(common + moved + bytes(4))
        try:
            structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
            frames = CallFrameInfo(
                stream, len(stream.getvalue()), where - len(common), structs, True
            )
            (found,) = (e for e in frames.get_entries() if isinstance(e, FDE))
            begin = found.header["initial_location"]
            if not begin <= address < begin + found.header["address_range"]:
                raise LookupError("between functions")
            if found.cie is None or b"S" in found.cie.header["augmentation"]:
                raise LookupError("the frame of a signal")
            rows = [row for row in found.get_decoded().table if row["pc"] <= address]
        except (ELFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise LookupError(f"a torn table: {error}") from error
        return _rule(rows[-1] if rows else {})

    def _entry(self, address: int) -> bytes:
        size = struct.unpack("<I", self._at(address, 4))[0]
        if not 8 <= size <= _MAX_ENTRY:
            raise LookupError("no entry of .eh_frame")
        return self._at(address, 4 + size)

    @cached_property
    def _table(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where functions begin and where their rules are, from .eh_frame_hdr."""
        for kind, _flags, _start, address, _physical, size, _memory, _align in self._segments:
            if kind == _PT_GNU_EH_FRAME:
                raw = self._at(address, size)
                if raw[:4] != _EH_TABLE:
                    break
                count = min(struct.unpack_from("<I", raw, 8)[0], (len(raw) - 12) // 8)
                pairs = np.frombuffer(raw, "<i4", 2 * count, 12).astype(np.int64) + address
                return pairs[::2], pairs[1::2]
        raise LookupError("no table of unwind rules")


def _sorted(symbols: Any, types: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Starts, ends and names of the symbols of such types."""
    wanted = np.isin(symbols["info"] & 15, types) & (symbols["section"] != 0)
    chosen = symbols[wanted & (symbols["size"] > 0)]
    chosen = chosen[np.argsort(chosen["value"], kind="stable")]
    return chosen["value"], chosen["value"] + chosen["size"], chosen["name"]


def _rule(row: dict[Any, Any]) -> Rule:
    cfa = row.get("cfa")
    if cfa is None or cfa.reg is None or cfa.offset is None:
        raise LookupError("the frame's base is computed")
    known = {number: rule for number, rule in row.items() if isinstance(number, int)}
    saved = {number: rule.arg for number, rule in known.items() if rule.type == "OFFSET"}
    return Rule(cfa.reg, cfa.offset, saved)
