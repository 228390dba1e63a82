"""What an instruction computed, written with the names of the values that it used."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kwhy.flow.ir import Expr

Place = str | int
"""A register, or a stack slot of 8 bytes by its offset from the caller's stack pointer."""

Base = tuple[object, ...]
"""("entry", register), ("at", address, place), ("meet", segment, place), ("stack",), ("const",)"""

CONST: Base = ("const",)
STACK: Base = ("stack",)
_MASK = (1 << 64) - 1
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul,
    "and": operator.and_, "or": operator.or_, "xor": operator.xor,
    "shl": lambda number, by: number << (by & 63),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Name:
    """The value ``base`` plus ``offset``; of ``width`` 4 only its low half, zero-extended."""

    base: Base
    offset: int = 0
    width: int = 8

    def plus(self, number: int) -> "Name | None":
        """This value and a constant."""
        return Name(self.base, self.offset + number) if self.width == 8 else None

    def low(self) -> "Name":
        """The low half."""
        if self.base == CONST:
            return Name(CONST, self.offset & 0xFFFFFFFF)
        return Name(self.base, self.offset, 4)


def formula(names: Mapping[Place, Name], expr: Expr) -> Expr | None:
    """``expr`` with ("name", Name) for registers; None if it cannot be told by names."""
    match expr:
        case ("reg", register, size):
            name = names.get(register)
            if name is None or size < 4:
                return None
            return ("name", name if size == 8 else name.low())
        case ("const", _value):
            return expr
        case ("load" | "bin" | "sext", *parts):
            made = [formula(names, p) if isinstance(p, tuple) else p for p in parts]
            return None if None in made else (expr[0], *made)
    return None


def evaluate(
    made: Expr, value: Callable[[Name], int | None], load: Callable[[int, int], int | None]
) -> int | None:
    """What a formula gives; None where ``value`` of a name or ``load`` (address, bytes) do."""
    match made:
        case ("name", name):
            return value(name)
        case ("either", *names):
            first, *others = [value(name) for name in names]
            return first if all(other == first for other in others) else None
        case ("const", number):
            return int(number) & _MASK
        case ("load", address, size):
            place = evaluate(address, value, load)
            return None if place is None else load(place, size)
        case ("sext", size, inner):
            number = evaluate(inner, value, load)
            if number is None:
                return None
            sign = 1 << 8 * int(size) - 1
            return (((number & 2 * sign - 1) ^ sign) - sign) & _MASK
        case ("bin", op, size, a, b):
            left, right = evaluate(a, value, load), evaluate(b, value, load)
            if left is None or right is None:
                return None
            made_of = _OPERATORS.get(op)
            if made_of is not None:
                return made_of(left, right) & (1 << 8 * int(size)) - 1
    return None
