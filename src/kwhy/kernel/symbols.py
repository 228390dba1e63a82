"""Names of kernel addresses, and addresses of names.

One table per origin (the debug vmlinux's symbol table, /proc/kallsyms, a module), each sorted by
address and searched with numpy; names stay bytes in a string table until somebody asks.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwhy.kernel.elf import SYMBOL

MAGIC = b"kwhysym1"
CODE, DATA, OTHER = 1, 2, 0
MASK = (1 << 64) - 1
PER_CPU_LIMIT = 1 << 28
"""Addresses below are offsets into the zero-based per-CPU area (x86_64 before 6.15)."""
GLOBAL, LOCAL, WEAK = 0, 1, 2
_SUFFIX = re.compile(r"\.(?:cold|part|isra|constprop|llvm|lto_priv)(?:\.\d+)?(?=\.|$)|\.\d+$")
_POOR = re.compile(
    r"^(?:__pi_|__cfi_|__pfx_|__do_sys_|__se_sys_|__do_compat_|__se_compat_|__ia32_)"
)


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named range of kernel memory; ``address`` is a run-time one, ``size`` in bytes."""

    name: str
    address: int
    size: int
    module: str | None = None
    code: bool = True

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.size


def base_name(name: str) -> str:
    """A symbol's name as the source has it: without .cold, .part.0, .isra.0, .constprop.0."""
    while True:
        shorter = _SUFFIX.sub("", name)
        if shorter == name:
            return name
        name = shorter


def rank(name: str, binding: int) -> tuple[bool, int, int, int, str]:
    """Sort key of aliases, best first: global FUNC names, plain ones, few underscores, short."""
    bare = name.lstrip("_")
    return (bool(_POOR.match(name)), binding, len(name) - len(bare), len(name), name)


class Table:
    """A sorted symbol table: parallel arrays plus a string table.

    ``address`` is relative to ``bias`` (so that the same table serves every boot), signed 64-bit.
    """

    def __init__(
        self,
        address: NDArray[np.int64],
        size: NDArray[np.uint32],
        kind: NDArray[np.uint8],
        name: NDArray[np.uint32],
        strings: bytes,
        module: str | None = None,
    ) -> None:
        order = np.lexsort((kind & 0x0F, address))
        self.address, self.size = address[order], size[order]
        self.kind, self.name, self.strings = kind[order], name[order], strings
        self.module = module
        self.bias = 0

    def __len__(self) -> int:
        return len(self.address)

    def to_bytes(self) -> bytes:
        """The table without its bias, for a case or the disk cache."""
        head = MAGIC + struct.pack("<Q", len(self))
        arrays = (self.address, self.size, self.kind, self.name)
        return head + b"".join(array.tobytes() for array in arrays) + self.strings

    @classmethod
    def from_bytes(cls, data: bytes, module: str | None = None) -> "Table":
        """Read what ``to_bytes`` wrote; raises ValueError on damage."""
        if data[:8] != MAGIC or len(data) < 16:
            raise ValueError("not a symbol table")
        (count,) = struct.unpack_from("<Q", data, 8)
        if count > (len(data) - 16) // 17:
            raise ValueError("symbol table is truncated")
        at = 16
        arrays: list[NDArray[Any]] = []
        for dtype in (np.int64, np.uint32, np.uint8, np.uint32):
            array = np.frombuffer(data, dtype, count, at)
            at += array.nbytes
            arrays.append(array)
        strings = data[at:]
        if count and int(arrays[3].max()) >= len(strings):
            raise ValueError("symbol table points outside of its strings")
        return cls(arrays[0], arrays[1], arrays[2], arrays[3], strings, module)

    def text(self, index: int) -> str:
        """Name of one entry."""
        start = int(self.name[index])
        return self.strings[start : self.strings.index(b"\0", start)].decode("utf-8", "replace")

    def symbol(self, index: int) -> Symbol:
        """One entry with run-time address; a size of 0 becomes the distance to the next address."""
        address = int(self.address[index])
        size = int(self.size[index])
        if not size:
            after = int(np.searchsorted(self.address, address, "right"))
            size = int(self.address[after]) - address if after < len(self) else 0
        runtime = (address + self.bias) & MASK
        return Symbol(
            self.text(index), runtime, size, self.module, bool(self.kind[index] & 15 == CODE)
        )

    def relative(self, address: int) -> int:
        """A run-time address as this table counts: minus ``bias``, signed 64-bit."""
        return (address - self.bias + (1 << 63) & MASK) - (1 << 63)

    def select(self, keep: NDArray[np.bool_], shift: int = 0) -> "Table":
        """The entries where ``keep`` is true, their addresses moved by ``shift``."""
        moved = (self.address[keep].astype(np.uint64) + np.uint64(shift & MASK)).astype(np.int64)
        return Table(
            moved, self.size[keep], self.kind[keep], self.name[keep], self.strings, self.module
        )

    @cached_property
    def _code(self) -> NDArray[np.int64]:
        sized = (self.kind & 0x0F == CODE) & (self.size > 0)
        index: NDArray[np.int64] = np.flatnonzero(sized)
        return index

    @cached_property
    def _code_address(self) -> NDArray[np.int64]:
        return self.address[self._code]

    def code_starts(self, start: int, end: int) -> list[int]:
        """Run-time addresses in [start, end) at which code symbols begin, each once, sorted."""
        low, high = np.searchsorted(
            self._code_labels, [self.relative(start), self.relative(end)], "left"
        )
        found = np.unique(self._code_labels[low:high])
        return [(int(address) + self.bias) & MASK for address in found]

    @cached_property
    def _code_labels(self) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.address[self.kind & 0x0F == CODE]
        return found

    def best(self, indices: list[int]) -> int:
        """The index to show among aliases: code before data, then ``rank``."""
        return min(
            indices,
            key=lambda i: (
                int(self.kind[i]) & 15 != CODE,
                not self.size[i],
                rank(self.text(i), int(self.kind[i]) >> 4),
            ),
        )

    def containing(self, address: int) -> int | None:
        """Index of the best symbol around a run-time address, None if there is none."""
        relative = self.relative(address)
        found = int(np.searchsorted(self._code_address, relative, "right")) - 1
        if found >= 0:
            start = int(self._code_address[found])
            aliases = []
            while found >= 0 and int(self._code_address[found]) == start:
                aliases.append(int(self._code[found]))
                found -= 1
            inside = [i for i in aliases if relative < start + int(self.size[i])]
            if inside:
                return self.best(inside)
        # No sized function: data, or a label, which reaches to the next symbol.
        after = int(np.searchsorted(self.address, relative, "right"))
        if not after:
            return None
        start = int(self.address[after - 1])
        first = int(np.searchsorted(self.address, start, "left"))
        sized = [i for i in range(first, after) if self.size[i]]
        if sized:
            inside = [i for i in sized if relative < start + int(self.size[i])]
        else:
            inside = list(range(first, after)) if after < len(self) else []
        return self.best(inside) if inside else None

    def named(self, name: str) -> list[int]:
        """Indices of the entries called exactly ``name``."""
        return self._at_strings(self._find(name.encode() + b"\0"))

    def variants(self, name: str) -> list[int]:
        """Indices of the code entries whose ``base_name`` is ``name``."""
        offsets = []
        for offset in self._find(name.encode()):
            text = self.strings[offset : self.strings.index(b"\0", offset)].decode(
                "utf-8", "replace"
            )
            if base_name(text) == name:
                offsets.append(offset)
        return [i for i in self._at_strings(offsets) if self.kind[i] & 15 == CODE]

    def _find(self, needle: bytes) -> list[int]:
        offsets, at = [], self.strings.find(needle)
        while at >= 0:
            offsets.append(at)
            at = self.strings.find(needle, at + 1)
        return offsets

    def _at_strings(self, offsets: list[int]) -> list[int]:
        """Entries whose name begins at one of ``offsets`` (linkers let names share their tails)."""
        order, names = self._by_name
        wanted = np.array(offsets, names.dtype)
        left, right = (
            np.searchsorted(names, wanted, "left"),
            np.searchsorted(names, wanted, "right"),
        )
        out: list[int] = []
        for start, end in zip(left.tolist(), right.tolist(), strict=True):
            if start < end:
                out += order[start:end].tolist()
        return sorted(out)

    @cached_property
    def _by_name(self) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        order: NDArray[np.int64] = np.argsort(self.name, kind="stable")
        return order, self.name[order]


def table_from_elf(
    symtab: NDArray[Any],
    strings: bytes,
    code_sections: set[int],
    module: str | None = None,
    section_address: dict[int, int] | None = None,
) -> Table:
    """A table from an ELF symbol array, addresses as there.

    ``section_address`` gives load addresses of a relocatable module's sections.  Local untyped
    names outside of code (__kstrtab_..., __crc_...) are left out.
    """
    kind = symtab["info"] & 15
    in_code = np.isin(symtab["shndx"], list(code_sections))
    keep = (kind <= 2) & (symtab["shndx"] != 0) & (symtab["name"] != 0) & (symtab["shndx"] < 0xFF00)
    keep &= (symtab["info"] != 0) | in_code
    if section_address is not None:
        keep &= np.isin(symtab["shndx"], list(section_address))
    chosen = symtab[keep]
    value = chosen["value"].astype(np.uint64)
    if section_address is not None:
        value = value + np.array([section_address[int(i)] for i in chosen["shndx"]], np.uint64)
    address = value.astype(np.int64)
    info = chosen["info"]
    code = (info & 15 == 2) | ((info & 15 == 0) & in_code[keep])
    kinds = np.where(code, CODE, np.where(info & 15 == 1, DATA, OTHER)).astype(np.uint8)
    binding = np.array([LOCAL, GLOBAL, WEAK] + [LOCAL] * 13, np.uint8)[info >> 4]
    size = np.minimum(chosen["size"], 0xFFFFFFFF).astype(np.uint32)
    return Table(
        address, size, kinds | binding << 4, chosen["name"].astype(np.uint32), strings, module
    )


def tables_from_kallsyms(text: bytes) -> dict[str | None, Table]:
    """One table per module (None: vmlinux) from /proc/kallsyms, addresses absolute (base 0).

    Sizes are unknown there (0).  Addresses that are all zero (no CAP_SYSLOG) give empty tables.
    """
    rows: dict[bytes, tuple[list[int], list[int], list[int], list[bytes], list[int]]] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 3 or (not (address := int(fields[0], 16)) and fields[1] not in b"Aa"):
            continue
        module = fields[3][1:-1] if len(fields) > 3 else b""
        letter = fields[1]
        row = rows.get(module)
        if row is None:
            row = rows[module] = ([], [], [], [], [0])
        kind = CODE if letter in b"tTwWi" else DATA
        binding = WEAK if letter in b"wWvV" else GLOBAL if letter.isupper() else LOCAL
        row[0].append(address - (1 << 64) if address >> 63 else address)
        row[1].append(kind | binding << 4)
        row[2].append(row[4][0])
        row[3].append(fields[2])
        row[4][0] += len(fields[2]) + 1
    out: dict[str | None, Table] = {}
    for module, (addresses, kinds, names, strings, _end) in rows.items():
        count = len(addresses)
        out[module.decode() or None] = Table(
            np.array(addresses, np.int64),
            np.zeros(count, np.uint32),
            np.array(kinds, np.uint8),
            np.array(names, np.uint32),
            b"\0".join(strings) + b"\0",
            module.decode() or None,
        )
    return out


def split_image(table: Table) -> tuple[Table, Table, int]:
    """The image's symbols relative to _text, the zero-based per-CPU ones, and _text as it stood.

    The second is empty since 6.15: 9d7de2aa8b41 "x86/percpu/64: Use relative percpu offsets".
    """
    absolute = table.address.astype(np.uint64)
    low = absolute < PER_CPU_LIMIT
    found = table.named("_text") or table.named("_stext")
    base = int(absolute[found[0]]) if found else 0
    image = table.select(~low, -base)
    return image, table.select(low & (table.kind & 15 != CODE)), base


class Symbols:
    """All symbols of a running kernel; modules are looked at when an address or name needs them."""

    def __init__(
        self, vmlinux: Table, percpu: Table, modules: Callable[[], dict[str, Table]]
    ) -> None:
        self.vmlinux = vmlinux
        self.percpu = percpu
        self._load_modules = modules
        text = self.vmlinux_symbol("_text") or self.vmlinux_symbol("_stext")
        end = self.vmlinux_symbol("_end")
        self.start = text.address if text else 0
        self.end = end.address if end else 0

    def vmlinux_symbol(self, name: str) -> Symbol | None:
        """The first symbol of the kernel image with that name."""
        found = self.vmlinux.named(name)
        return self.vmlinux.symbol(found[0]) if found else None

    @cached_property
    def modules(self) -> dict[str, Table]:
        """Tables of the loaded modules by name."""
        return self._load_modules()

    def in_image(self, address: int) -> bool:
        """Whether an address lies in the kernel image proper (not in a module)."""
        return self.start <= address < self.end

    def at(self, address: int) -> Symbol | None:
        """The symbol that contains ``address``; of aliases the one a reader knows best."""
        if self.in_image(address):
            found = self.vmlinux.containing(address)
            return None if found is None else self.vmlinux.symbol(found)
        # Memory of modules interleaves, and a size that is only the distance to the module's next
        # symbol may span another module: the nearest symbol is the one.
        nearest: Symbol | None = None
        for table in self.modules.values():
            found = table.containing(address)
            symbol = table.symbol(found) if found is not None else None
            if symbol is None or address >= symbol.end:
                continue
            if nearest is None or symbol.address > nearest.address:
                nearest = symbol
        return nearest

    def code_starts(self, start: int, end: int) -> list[int]:
        """Addresses in [start, end) at which functions begin, each once, sorted."""
        found = [a for table in self._tables_of(start) for a in table.code_starts(start, end)]
        return sorted(set(found))

    def names_at(self, address: int) -> list[str]:
        """Every name that starts at ``address``, best first."""
        out: list[str] = []
        for table in self._tables_of(address):
            relative = table.relative(address)
            left = int(np.searchsorted(table.address, relative, "left"))
            right = int(np.searchsorted(table.address, relative, "right"))
            indices = sorted(
                range(left, right), key=lambda i: rank(table.text(i), int(table.kind[i]) >> 4)
            )
            out += [table.text(i) for i in indices]
        return out

    def _tables_of(self, address: int) -> Iterator[Table]:
        if self.in_image(address):
            yield self.vmlinux
        else:
            yield from self.modules.values()

    def named(self, name: str, modules: bool = True) -> list[Symbol]:
        """Every symbol called ``name``: the kernel's first; modules' only if it has none there."""
        out = [self.vmlinux.symbol(i) for i in self.vmlinux.named(name)]
        if not out and modules:
            for table in self.modules.values():
                out += [table.symbol(i) for i in table.named(name)]
        return out

    def address(self, name: str) -> int | None:
        """The address of the kernel image's symbol ``name``, None if it has none."""
        symbol = self.vmlinux_symbol(name)
        return None if symbol is None else symbol.address

    def variant(self, name: str) -> list[Symbol]:
        """Code symbols whose ``base_name`` is ``name``: itself, ``name.part.0``, ``name.cold``."""
        for table in (self.vmlinux, *self.modules.values()):
            if found := [table.symbol(i) for i in table.variants(name)]:
                return found
        return []


__all__ = [
    "SYMBOL",
    "Symbol",
    "Symbols",
    "Table",
    "base_name",
    "table_from_elf",
    "tables_from_kallsyms",
]
