"""ORC, the kernel's own unwind tables: what each entry says, in every numbering there has been.

arch/x86/include/asm/orc_types.h and Documentation/arch/x86/orc-unwinder.rst. The numbers changed
twice: types in 6.4 (ffb1b4a41016 "x86/unwind/orc: Add 'signal' field to ORC metadata" and the
commits around it), registers later. Neither is in BTF, so :func:`numbering` asks the table itself:
nearly all entries are relative to the stack pointer.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

Kind = Literal["call", "regs", "partial", "end", "undefined"]

ENTRY = 6  # bytes: s16 sp_offset, s16 bp_offset, 16 bits of fields
IRET_RIP, IRET_CS, IRET_RSP = 128, 136, 152
"""Offsets in ``struct pt_regs`` of what an exception pushes (asm/ptrace.h)."""
REGS_RBP = 32

SWITCH_FRAME = {"r15": "r15", "r14": "r14", "r13": "r13", "r12": "r12", "bx": "rbx", "bp": "rbp"}
"""Members of ``struct inactive_task_frame`` (asm/switch_to.h) and the registers that they hold."""
SWITCH_RETURN = "ret_addr"

_TYPES_OLD: dict[int, Kind] = {0: "call", 1: "regs", 2: "partial"}
_TYPES_NEW: dict[int, Kind] = {0: "undefined", 1: "end", 2: "call", 3: "regs", 4: "partial"}
_REGISTERS_OLD = {
    0: "", 1: "prev_sp", 2: "dx", 3: "di", 4: "bp", 5: "sp", 6: "r10", 7: "r13",
    8: "bp_indirect", 9: "sp_indirect",
}  # fmt: skip
_REGISTERS_NEW = {
    0: "", 1: "ax", 2: "dx", 3: "sp", 4: "bp", 5: "di", 6: "r10", 7: "r13", 8: "prev_sp",
    9: "sp_indirect", 10: "bp_indirect",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rule:
    """How the caller's frame is found: the base register and offset of its stack pointer, etc.

    ``signal``: the frame was interrupted, so its address is the next instruction, not a call's.
    """

    kind: Kind
    sp: str
    sp_offset: int
    bp: str
    bp_offset: int
    signal: bool = False


@dataclass(frozen=True, slots=True)
class Numbering:
    """Which numbers this kernel's tables use. ``end_bit``: types of before 6.4."""

    end_bit: int | None
    signal_bit: int | None
    registers: tuple[tuple[int, str], ...]


def numbering(sample: bytes, end_bit: int | None, signal_bit: int | None) -> Numbering:
    """From a ``sample`` of entries; the bits are those of ``struct orc_entry``'s members."""
    votes = Counter(sample[at] & 15 for at in range(4, len(sample), ENTRY))
    most = votes.most_common(1)[0][0] if votes else 0
    new = _REGISTERS_NEW.get(most) == "sp"
    return Numbering(
        end_bit, signal_bit, tuple((_REGISTERS_NEW if new else _REGISTERS_OLD).items())
    )


def rule(entry: bytes, numbers: Numbering) -> Rule:
    """The rule that the six bytes of ``entry`` say."""
    sp_offset = int.from_bytes(entry[:2], "little", signed=True)
    bp_offset = int.from_bytes(entry[2:4], "little", signed=True)
    bits = int.from_bytes(entry[4:6], "little")
    registers = dict(numbers.registers)
    sp, bp = registers.get(bits & 15, "?"), registers.get(bits >> 4 & 15, "?")
    signal = numbers.signal_bit is not None and bool(bits >> numbers.signal_bit & 1)
    kind: Kind
    if numbers.end_bit is None:
        kind = _TYPES_NEW.get(bits >> 8 & 7, "undefined")
    else:
        kind = _TYPES_OLD.get(bits >> 8 & 3, "undefined")
        if not sp:
            kind = "end" if bits >> numbers.end_bit & 1 else "undefined"
    return Rule(kind, sp, sp_offset, bp, bp_offset, signal)
