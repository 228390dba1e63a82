"""Which negative numbers of a run are error numbers: those that its code has as constants.

``task_prio()`` of a real-time task is -6 because 100 was subtracted, not because of ENXIO; and -1
is what comparisons, searches and sentinels make as well as ``return -EPERM``.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache

from kwhy.arch import STACK_POINTERS
from kwhy.flow.ir import Effect, Expr, Insn
from kwhy.kernel.model import Kernel

_EFAULT = -14  # made by the fault handler
_LIMIT = 4096
_POINTER = 8


def made(kernel: Kernel, insns: Iterable[Insn]) -> Callable[[int], bool]:
    """Whether a number is an error that one of the instructions makes.

    Of -1 the function's source has to say so as well: ``EPERM``.
    """

    @cache
    def constants() -> dict[int, list[int]]:
        out: dict[int, list[int]] = {}
        for insn in insns:
            for effect in insn.effects + insn.otherwise:
                for number in set(_written(effect)):
                    out.setdefault(number, []).append(insn.address)
        return out

    @cache
    def is_error(number: int) -> bool:
        places = constants().get(number, [])
        if number != -1:
            return bool(places) or number == _EFAULT
        return any(_says(kernel, address, "EPERM") for address in places)

    return is_error


def _written(effect: Effect) -> Iterator[int]:
    """The small negative numbers that an effect writes, or has a part in making what it writes."""
    if effect[0] not in ("set", "store") or effect[1] in STACK_POINTERS:
        return
    size = effect[2]
    for number, summand in _numbers(effect[3]):
        low = number & (1 << 8 * size) - 1
        signed = low - (1 << 8 * size) if low >> (8 * size - 1) else low
        # What is added to a pointer leads to a structure around it; only -1 makes errors of truth.
        if -_LIMIT < signed < 0 and (not summand or size < _POINTER or signed == -1):
            yield signed


def _numbers(value: Expr, summand: bool = False) -> Iterator[tuple[int, bool]]:
    """The constants in an expression, not those in addresses; whether something is added to each.

    ``x - 1`` is read as ``x + -1``.
    """
    if value[0] == "const":
        yield value[1], summand
    elif value[0] == "bin":
        _, op, _, left, right = value
        if op == "sub" and right == ("const", 1):
            right = ("const", -1)
        for part in (left, right):
            yield from _numbers(part, summand or op in ("add", "sub"))
    elif value[0] in ("un", "sext"):
        yield from _numbers(value[-1], summand)


def _says(kernel: Kernel, address: int, name: str) -> bool:
    """Whether the source of a function, or of one inlined there, has a word."""
    for frame in kernel.frames(address):
        parsed = kernel.parsed(frame.file) if frame.file and frame.line else None
        function = parsed.function_at(frame.line) if parsed else None
        text = kernel.source(frame.file) if function else None
        if function and text:
            lines = text.split("\n")[function.start - 1 : function.end]
            if re.search(rf"\b{name}\b", "\n".join(lines)):
                return True
    return False
