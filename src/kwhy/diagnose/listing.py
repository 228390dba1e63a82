"""A function's instructions as they are in memory, each with its source line and what it names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kwhy.arch import of
from kwhy.case.evidence import MissingMemory
from kwhy.errors import UsageError
from kwhy.flow.ir import Insn
from kwhy.kernel.lines import SourceFrame
from kwhy.kernel.model import Kernel
from kwhy.kernel.symbols import Symbol

_MASK = (1 << 64) - 1
_LONGEST = 1 << 17


@dataclass(frozen=True, slots=True)
class Row:
    """One instruction, jumps and calls by name or by offset (``+0x40``) in their own function.

    ``note`` names what else it refers to; ``frames`` is its source, innermost inlined function
    first, empty if not known.
    """

    address: int
    offset: int
    text: str
    note: str
    frames: tuple[SourceFrame, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """The instructions of one symbol; ``asked`` is the address that was asked for."""

    symbol: Symbol
    asked: int
    rows: tuple[Row, ...]


def listing(kernel: Kernel, address: int) -> Listing:
    """The function around ``address``, from live text.

    Raises UsageError where there is no code, MissingMemory where it cannot be read.
    """
    symbol = kernel.symbols.at(address)
    if symbol is None or not symbol.code:
        what = f"{symbol.name} is data" if symbol else f"there is no function at {address:#x}"
        raise UsageError(f"{what}: only code can be disassembled")
    code = kernel.code(symbol.address, min(symbol.size or 1, _LONGEST))
    rows = tuple(
        Row(
            insn.address,
            insn.address - symbol.address,
            _text(kernel, symbol, insn),
            _note(kernel, insn),
            tuple(kernel.frames(insn.address)),
        )
        for insn in _decoded(kernel, code, symbol.address)
    )
    return Listing(symbol, address, rows)


def _decoded(kernel: Kernel, code: bytes, start: int) -> Iterator[Insn]:
    """All of the code; a byte that no instruction begins with is shown as such."""
    decode, at = of(kernel.arch).decode, 0
    while at < len(code):
        found = decode(code[at:], start + at)
        yield from found or [Insn(start + at, 1, f".byte {code[at]:#04x}")]
        at = (found[-1].end if found else start + at + 1) - start


def _text(kernel: Kernel, symbol: Symbol, insn: Insn) -> str:
    if insn.target is None:
        return insn.text
    goal = _name(kernel, insn.target)
    if symbol.address < insn.target < symbol.end:
        goal = f"+{insn.target - symbol.address:#x}"
    return insn.text.replace(f"{insn.target:#x}", goal) if goal else insn.text


def _note(kernel: Kernel, insn: Insn) -> str:
    if insn.target is not None:
        return ""
    parts = (insn.effects, insn.otherwise, insn.through)
    return ", ".join(dict.fromkeys(name for part in parts for name in _referred(kernel, part)))


def _referred(kernel: Kernel, part: Any) -> Iterator[str]:
    """What the constants in an instruction's effects name."""
    if not isinstance(part, tuple):
        return
    if part[:1] == ("percpu",) and part[1][0] == "const":
        found = kernel.types.percpu(part[1][1])
        if found is not None:
            yield f"this CPU's {found[0]}"
    elif part[:1] == ("const",) and isinstance(part[1], int):
        if name := _name(kernel, part[1] & _MASK):
            yield name
    else:
        for inner in part:
            yield from _referred(kernel, inner)


def _name(kernel: Kernel, address: int) -> str:
    symbol = kernel.symbols.at(address)
    if symbol is None:
        return ""
    inside = address - symbol.address
    return symbol.name + (f"+{inside:#x}" if inside else "") + _string(kernel, symbol, address)


def _string(kernel: Kernel, symbol: Symbol, address: int) -> str:
    """The string that an address of no variable holds: message texts lie together, unnamed."""
    if symbol.code or symbol.address == address:
        return ""
    try:
        raw, end, _ = kernel.code(address, 64).partition(b"\0")
    except MissingMemory:
        return ""
    text = raw.decode("ascii", "replace")
    return f' "{text}"' if end and len(text) > 1 and text.isprintable() else ""
