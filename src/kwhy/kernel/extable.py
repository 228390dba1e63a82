"""The exception table: which instructions may fault, and where the kernel then goes on (x86).

Entries are three 32-bit words, the first two relative to their own place: instruction, fixup.
The third was a relative pointer to a handler from 4.6 (548acf19234d "x86/mm: Expand the exception
table logic to allow new handling options") and is a type word since 5.16 (46d28947d987
"x86/extable: Rework the exception table mechanics"), with register, flags and immediate since 5.17
(4b5305decc84 "x86/extable: Extend extable functionality").  Which of the two a table has is seen
from its data.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

KINDS = {
    # arch/x86/include/asm/extable_fixup_types.h
    1: "default", 2: "fault", 3: "uaccess", 4: "copy", 5: "clear_fs", 6: "fpu_restore", 7: "bpf",
    8: "wrmsr", 9: "rdmsr", 10: "wrmsr_safe", 11: "rdmsr_safe", 12: "wrmsr_in_mce",
    13: "rdmsr_in_mce",
    14: "default", 15: "fault", 16: "pop_reg", 17: "imm_reg", 18: "fault", 19: "ucopy_len",
    20: "zeropad", 21: "eretu",
}  # fmt: skip
EFAULT = 14
REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
             "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")  # fmt: skip
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class ExtableEntry:
    """A fault at ``insn`` continues at ``fixup``.

    ``kind``: "default", "fault", "uaccess", "copy", "efault_reg" (``register`` becomes -EFAULT),
    "imm_reg" (``register`` becomes ``imm``), "ucopy_len", ... or "other".  ``data`` is the raw
    third word, ``type`` its low byte (0 in the older format), ``cleared`` the registers that become
    0 (EX_FLAG_CLEAR_AX, EX_FLAG_CLEAR_DX).
    """

    insn: int
    fixup: int
    kind: str
    type: int = 0
    data: int = 0
    register: str | None = None
    imm: int | None = None
    cleared: tuple[str, ...] = ()


def parse(
    table: bytes, address: int, handler_name: Callable[[int], str | None]
) -> list[ExtableEntry]:
    """All entries of a table that lies at ``address``, sorted by instruction.

    ``handler_name`` names the function at an address (the older format's handlers).
    """
    words = np.frombuffer(table, "<i4", len(table) // 12 * 3).reshape(-1, 3).astype(np.int64)
    if not len(words):
        return []
    at = address - (1 << 64) if address >> 63 else address
    place = at + 12 * np.arange(len(words), dtype=np.int64)
    insns, fixups, third = words[:, 0] + place, words[:, 1] + place + 4, words[:, 2]
    handlers = third + place + 8
    typed = bool(np.isin(third & 0xFF, list(KINDS)).all()) and len(np.unique(handlers)) > 32
    names: dict[int, str] = {}
    if not typed:
        for handler in np.unique(handlers):
            names[int(handler)] = handler_name(int(handler) & _MASK) or ""
        # A short table of the newer format has few distinct words as well: names decide.
        typed = not any("ex_handler" in name for name in names.values())
    out = []
    for insn, fixup, data, handler in zip(
        insns.tolist(), fixups.tolist(), third.tolist(), handlers.tolist(), strict=True
    ):
        if typed:
            out.append(_typed(insn & _MASK, fixup & _MASK, data))
        else:
            kind = names[handler].removeprefix("ex_handler_")
            kind = kind if kind in KINDS.values() else "other"
            out.append(ExtableEntry(insn & _MASK, fixup & _MASK, kind, 0, data))
    return sorted(out, key=lambda entry: entry.insn)


def _typed(insn: int, fixup: int, data: int) -> ExtableEntry:
    type = data & 0xFF
    kind = KINDS.get(type, "other")
    register = imm = None
    if type in (10, 11, 16, 17, 19, 20):
        register = REGISTERS[data >> 8 & 15]
        imm = data >> 16  # arithmetic: data is signed
    if kind == "imm_reg" and imm == -EFAULT:
        kind = "efault_reg"
    flags = data >> 12 & 15
    cleared = tuple(name for bit, name in ((1, "rax"), (2, "rdx")) if flags & bit)
    return ExtableEntry(insn, fixup, kind, type, data, register, imm, cleared)


def between(entries: list[ExtableEntry], start: int, end: int) -> list[ExtableEntry]:
    """Entries whose instruction lies in [start, end)."""
    return [entry for entry in entries if start <= entry.insn < end]
