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
from kwhy.kernel.stacksteps import Place, Step, Word

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


class OrcUnwinder:
    """Stacks of a kernel on x86-64. Raises LookupError without type information."""

    def __init__(self, kernel: Kernel) -> None:
        self._tables = OrcTables(kernel)
        types = kernel.types
        frame = types.named("struct inactive_task_frame")
        if frame is None:
            raise LookupError("no type information for struct inactive_task_frame")
        self._size = types.size(frame) or 0
        self._saved = {
            name: member.offset
            for name in (*arch.SWITCH_FRAME, arch.SWITCH_RETURN)
            if (member := types.field(frame, name)) is not None
        }

    def asleep(self, sp: int, word: Word) -> tuple[Place, dict[str, int]]:
        """See :class:`kwhy.kernel.stacksteps.Unwinder`."""
        values = {name: word(sp + at) for name, at in self._saved.items()}
        pc = values.pop(arch.SWITCH_RETURN)
        saved = {arch.SWITCH_FRAME[name]: value for name, value in values.items()}
        return Place(pc, sp + self._size, saved["rbp"]), saved

    def up(self, at: Place, word: Word) -> Step:
        """See :class:`kwhy.kernel.stacksteps.Unwinder`."""
        rule = self._tables.rule(at.pc if at.interrupted else at.pc - 1)
        if rule is None or rule.kind == "undefined":
            raise LookupError(f"no unwind rule at {at.pc:#x}")
        if rule.kind == "end":
            return Step(at.sp)
        cfa = self._cfa(rule, at, word)
        fp = self._frame_pointer(rule, cfa, at, word)
        regs = None if rule.kind == "call" else cfa
        try:
            if regs is None:
                caller = Place(word(cfa - 8), cfa, fp, rule.signal)
            elif word(cfa + arch.IRET_CS) & 3:  # it came from user space
                return Step(cfa, regs=regs)
            else:
                fp = word(cfa + arch.REGS_RBP) if rule.kind == "regs" else at.fp
                caller = Place(word(cfa + arch.IRET_RIP), word(cfa + arch.IRET_RSP), fp, True)
        except LookupError:
            return Step(cfa, regs=regs, lost=True)
        if caller.sp <= at.sp:
            return Step(cfa, regs=regs, lost=True)
        return Step(cfa, caller, regs)

    def _cfa(self, rule: Rule, at: Place, word: Word) -> int:
        match rule.sp:
            case "sp":
                return at.sp + rule.sp_offset
            case "bp":
                return at.fp + rule.sp_offset
            case "sp_indirect":
                return word(at.sp) + rule.sp_offset
            case "bp_indirect":
                return word(at.fp + rule.sp_offset)
        raise LookupError(f"the stack pointer is in {rule.sp}")

    def _frame_pointer(self, rule: Rule, cfa: int, at: Place, word: Word) -> int:
        if rule.bp == "prev_sp":
            return word(cfa + rule.bp_offset)
        if rule.bp == "bp":
            return word(at.fp + rule.bp_offset)
        return at.fp
