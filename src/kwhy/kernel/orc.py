"""The kernel's unwind rules, read from its own memory: for the image and for modules.

Nothing but memory and BTF is needed, so stacks are whole also where there is no debug information.
Tables and their search: arch/x86/kernel/unwind_orc.c.
"""

import struct
from functools import cached_property

from kwhy.arch import x86_64_orc as arch
from kwhy.arch.x86_64_orc import ENTRY, Rule
from kwhy.case.evidence import MissingMemory
from kwhy.kernel.model import Kernel
from kwhy.kernel.modules import Module

_BLOCK = 256  # LOOKUP_BLOCK_SIZE, bytes of code per entry of orc_lookup
_SAMPLE = 2048  # entries
_MAX_MODULE = 1 << 20  # entries of one module


class OrcTables:
    """Rules by address; each is looked up once. ``available`` says whether there are any."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._read = kernel.evidence.read
        self._rules: dict[int, Rule | None] = {}
        names = ("__start_orc_unwind", "__start_orc_unwind_ip", "orc_lookup", "_stext", "_etext")
        found = [kernel.symbols.address(name) for name in names]
        self._places = [address for address in found if address is not None]
        self.available = len(self._places) == len(names)

    def rule(self, address: int) -> Rule | None:
        """How to leave the function at ``address``; None where the kernel does not say."""
        if address not in self._rules:
            try:
                self._rules[address] = self._find(address)
            except MissingMemory:
                self._rules[address] = None
        return self._rules[address]

    @cached_property
    def _numbering(self) -> arch.Numbering:
        types = self._kernel.types
        entry = types.named("struct orc_entry")
        fields = types.fields(entry) if entry is not None else []
        bits = {m.path: m.bits[0] + 8 * m.offset for m in fields if m.bits}
        sample = self._read(self._places[0], _SAMPLE * ENTRY)
        end, signal = bits.get("end"), bits.get("signal")
        return arch.numbering(
            sample, None if end is None else end - 32, None if signal is None else signal - 32
        )

    def _find(self, address: int) -> Rule | None:
        if not self.available:
            return None
        entries, ips, lookup, start, end = self._places
        if start <= address < end:
            block = (address - start) // _BLOCK
            first, last = struct.unpack("<II", self._read(lookup + 4 * block, 8))
            if not 0 <= last - first < _MAX_MODULE:
                return None
            return self._search(entries + ENTRY * first, ips + 4 * first, last - first + 1, address)
        place = next((p for p in self._modules if p[3].contains(address)), None)
        return self._search(place[0], place[1], place[2], address) if place else None

    def _search(self, entries: int, ips: int, count: int, address: int) -> Rule | None:
        """The last entry that begins at or before ``address``, by bisection of ``ips``."""
        low, high = 0, count - 1
        found = None
        while low <= high:
            middle = (low + high) // 2
            at = ips + 4 * middle
            if at + struct.unpack("<i", self._read(at, 4))[0] <= address:
                found, low = middle, middle + 1
            else:
                high = middle - 1
        if found is None:
            return None
        return arch.rule(self._read(entries + ENTRY * found, ENTRY), self._numbering)

    @cached_property
    def _modules(self) -> list[tuple[int, int, int, Module]]:
        types = self._kernel.types
        module = types.named("struct module")
        fields = [
            types.field(module, f"arch.{name}") if module else None
            for name in ("orc_unwind", "orc_unwind_ip", "num_orcs")
        ]
        out = []
        for one in self._kernel.modules:
            values = []
            for field in fields:
                if field is None:
                    return []
                raw = self._read(one.address + field.offset, field.size)
                values.append(int.from_bytes(raw, "little"))
            entries, ips, count = values
            if entries and ips and 0 < count < _MAX_MODULE:
                out.append((entries, ips, count, one))
        return out
