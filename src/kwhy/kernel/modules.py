"""The loaded modules, read from kernel memory: their ranges, symbols and exception tables.

Reading /proc/kallsyms for the few module symbols that a case needs costs seconds under emulation;
``struct module`` holds the same (kernel/module/kallsyms.c), with sizes, in a few pages.
"""

import struct
from dataclasses import dataclass

import numpy as np

from kwhy.case.evidence import Evidence, MissingMemory
from kwhy.kernel.elf import SYMBOL
from kwhy.kernel.symbols import CODE, DATA, GLOBAL, LOCAL, WEAK, Table
from kwhy.kernel.types import TypeRef, Types

MAX_MODULES, MAX_SYMBOLS, MAX_STRINGS = 2000, 200_000, 8 << 20


@dataclass(frozen=True, slots=True)
class Module:
    """A loaded module; ``ranges``: (address, size) of its memory, ``extable``: (address, count)."""

    name: str
    address: int
    ranges: tuple[tuple[int, int], ...]
    text: tuple[int, int]
    symtab: tuple[int, int, int]
    extable: tuple[int, int]

    def contains(self, address: int) -> bool:
        """Whether an address belongs to the module."""
        return any(start <= address < start + size for start, size in self.ranges)


class _Reader:
    def __init__(self, evidence: Evidence, types: Types) -> None:
        self.evidence, self.types = evidence, types
        found = types.named("struct module")
        if found is None:
            raise LookupError("no type information for struct module")
        self.module: TypeRef = found

    def value(self, base: int, type: TypeRef, path: str) -> int | None:
        """An integer or pointer field; None if the type has no such field."""
        field = self.types.field(type, path)
        if field is None or not 0 < field.size <= 8:
            return None
        return int.from_bytes(self.evidence.read(base + field.offset, field.size), "little")

    def need(self, base: int, type: TypeRef, path: str) -> int:
        value = self.value(base, type, path)
        if value is None:
            raise LookupError(f"struct module has no {path}")
        return value


def list_modules(evidence: Evidence, types: Types, head: int) -> list[Module]:
    """Walk the ``modules`` list whose head is at ``head``.

    Raises MissingMemory or LookupError when memory or types do not give it.
    """
    reader = _Reader(evidence, types)
    link = types.field(reader.module, "list")
    size = types.size(reader.module)
    if link is None or size is None:
        raise LookupError("no layout of struct module")
    (at,) = struct.unpack("<Q", evidence.read(head, 8))
    out: list[Module] = []
    while at != head and len(out) < MAX_MODULES:
        base = at - link.offset
        evidence.prefetch([(base, size)])
        out.append(_module(reader, base))
        (at,) = struct.unpack("<Q", evidence.read(at, 8))
    return out


def _module(reader: _Reader, base: int) -> Module:
    types, evidence = reader.types, reader.evidence
    name_field = types.field(reader.module, "name")
    if name_field is None:
        raise LookupError("struct module has no name")
    raw = evidence.read(base + name_field.offset, name_field.size)
    name = raw.split(b"\0")[0].decode("utf-8", "replace")
    memory = types.field(reader.module, "mem")
    ranges: list[tuple[int, int]] = []
    if memory is not None:
        # Since 6.4: ac3b43283923 "module: replace module_layout with module_memory".
        element = types.deref(memory.type)
        step = types.size(element) if element else None
        if element is None or not step:
            raise LookupError("no layout of struct module_memory")
        for at in range(base + memory.offset, base + memory.offset + memory.size, step):
            ranges.append((reader.need(at, element, "base"), reader.need(at, element, "size")))
    else:
        for layout in ("core_layout", "init_layout"):
            start = reader.need(base, reader.module, f"{layout}.base")
            ranges.append((start, reader.need(base, reader.module, f"{layout}.size")))
    text = ranges[0]
    symtab = (0, 0, 0)
    table = reader.value(base, reader.module, "kallsyms")
    kallsyms = types.named("struct mod_kallsyms")
    if table and kallsyms:
        symtab = (
            reader.need(table, kallsyms, "symtab"),
            reader.need(table, kallsyms, "num_symtab"),
            reader.need(table, kallsyms, "strtab"),
        )
    entries = reader.value(base, reader.module, "num_exentries") or 0
    extable = (reader.value(base, reader.module, "extable") or 0, entries)
    return Module(name, base, tuple(r for r in ranges if r[0] and r[1]), text, symtab, extable)


def symbol_table(evidence: Evidence, module: Module) -> Table:
    """The module's symbols (ELF symbols with run-time values, st_size kept)."""
    address, count, strings_at = module.symtab
    count = min(count, MAX_SYMBOLS)
    evidence.prefetch([(address, count * SYMBOL.itemsize)])
    raw = evidence.read(address, count * SYMBOL.itemsize) if count else b""
    symtab = np.frombuffer(raw, SYMBOL, count)
    keep = (symtab["shndx"] != 0) & (symtab["value"] != 0) & (symtab["name"] != 0)
    keep &= (symtab["info"] & 15) <= 2
    symtab = symtab[keep]
    last = int(symtab["name"].max()) if len(symtab) else 0
    if last > MAX_STRINGS:
        raise MissingMemory(strings_at, f"module {module.name}'s symbol names are not plausible")
    strings = evidence.read(strings_at, last) + _tail(evidence, strings_at + last)
    info = symtab["info"]
    start, size = module.text
    in_text = (symtab["value"] >= np.uint64(start)) & (symtab["value"] < np.uint64(start + size))
    # st_info is as in the file since 5.2 (1c7651f43777 "kallsyms: store type information in its own
    # array").
    kinds = np.where((info & 15 == 2) | (info & 15 == 0) & in_text, CODE, DATA).astype(np.uint8)
    binding = np.array([LOCAL, GLOBAL, WEAK] + [LOCAL] * 13, np.uint8)[info >> 4]
    sizes = np.minimum(symtab["size"], 0xFFFFFFFF).astype(np.uint32)
    return Table(
        symtab["value"].astype(np.int64),
        sizes,
        kinds | binding << 4,
        symtab["name"].astype(np.uint32),
        strings,
        module.name,
    )


def _tail(evidence: Evidence, address: int) -> bytes:
    """The string at ``address`` with its terminator (at most 512 bytes: KSYM_NAME_LEN)."""
    out = b""
    while len(out) < 512:
        out += evidence.read(address + len(out), min(64, 4096 - (address + len(out)) % 4096))
        if (end := out.find(b"\0")) >= 0:
            return out[: end + 1]
    return out + b"\0"
