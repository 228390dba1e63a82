"""The neutral form of machine code that the analysis works on.

An architecture's decoder turns each instruction into an :class:`Insn`: how control goes on after
it, and its effects as small expression trees (plain tuples, so that they cost little and compare
by value). Sizes are in bytes.

Expressions
    ``("reg", name, size)``                  low bytes of a register, zero-extended
    ``("const", value)``
    ``("load", address, size)``              address is an expression
    ``("bin", op, size, a, b)``              add sub and or xor shl shr sar mul
    ``("un", op, size, a)``                  neg not
    ``("sext", size, a)``                    sign-extend from ``size`` to 8
    ``("percpu", address)``                  an address relative to this CPU's data
    ``("unknown",)``

Effects
    ``("set", register, size, expression)``  a write of 4 bytes clears the upper half
    ``("store", address, size, expression)``
    ``("flags", kind, size, a, b)``          kind: cmp test add logic result bit unknown
    ``("forget", registers)``
    ``("swap", address, size, register)``
    ``("copy", to, from, count, unit)``      ``count`` units of ``unit`` bytes, upwards
    ``("fill", to, value, count, unit)``
    ``("bittest", size, address, index)``    flags told by a bit of memory, counted from an address

Conditions are named eq ne ult uge ule ugt slt sge sle sgt neg pos and others (never decided).
"""

from dataclasses import dataclass, field
from typing import Any

Expr = tuple[Any, ...]
Effect = tuple[Any, ...]

INVERSE = {
    "eq": "ne",
    "ne": "eq",
    "ult": "uge",
    "uge": "ult",
    "ule": "ugt",
    "ugt": "ule",
    "slt": "sge",
    "sge": "slt",
    "sle": "sgt",
    "sgt": "sle",
    "neg": "pos",
    "pos": "neg",
    "parity": "noparity",
    "noparity": "parity",
    "overflow": "nooverflow",
    "nooverflow": "overflow",
}


@dataclass(slots=True)
class Insn:
    """One instruction.

    ``kind`` says how control goes on: ``op`` (next), ``branch`` (``condition`` decides between
    ``target`` and next), ``select`` (``condition`` decides between ``effects`` and ``otherwise``,
    then next), ``jump``, ``call``, ``return``, ``trap`` (an exception by intent), ``stop``.
    ``target`` is None for an indirect jump or call, whose place is then ``through``.
    """

    address: int
    size: int
    text: str
    kind: str = "op"
    effects: tuple[Effect, ...] = ()
    otherwise: tuple[Effect, ...] = ()
    condition: str = ""
    target: int | None = None
    through: Expr | None = None
    uses: frozenset[str] = field(default_factory=frozenset)
    defines: frozenset[str] = field(default_factory=frozenset)

    @property
    def end(self) -> int:
        """Address of the next instruction."""
        return self.address + self.size
