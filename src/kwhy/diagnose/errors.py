"""Which negative numbers of a run are error numbers: those that its code has as constants.

``task_prio()`` of a real-time task is -6 because 100 was subtracted, not because of ENXIO; and -1
is what comparisons, searches and sentinels make as well as ``return -EPERM``.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache

from kwhy.flow.ir import Insn
from kwhy.kernel.model import Kernel

_CONSTANT = re.compile(r"(?:mov\w*|and|or|push|add|sub|lea|xor)\s.*?(?:, |^push )(-?0x[0-9a-f]+)$")
_ONE_LESS = re.compile(r"(?:sub\s\w+, 1|dec\s\w+|lea\s.* - 1\]|sbb\s.*)$")
"""Ways to make -1 of a truth value: ``cap_raised(...) ? 0 : -EPERM``."""
_EFAULT = -14  # made by the fault handler
_LIMIT = 4096


def made(kernel: Kernel, insns: Iterable[Insn]) -> Callable[[int], bool]:
    """Whether a number is an error that one of the instructions makes.

    Of -1 the function's source has to say so as well: ``EPERM``.
    """

    @cache
    def constants() -> dict[int, list[int]]:
        out: dict[int, list[int]] = {}
        for insn in insns:
            if _ONE_LESS.match(insn.text):
                out.setdefault(-1, []).append(insn.address)
            match = _CONSTANT.match(insn.text)
            if match is None:
                continue
            number = int(match[1], 16)
            for bits in (32, 64):
                if 1 << bits > number >= (1 << bits) - _LIMIT:
                    number -= 1 << bits
            if -_LIMIT < number < 0:
                out.setdefault(number, []).append(insn.address)
        return out

    @cache
    def is_error(number: int) -> bool:
        places = constants().get(number, [])
        if number != -1:
            return bool(places) or number == _EFAULT
        return any(_says(kernel, address, "EPERM") for address in places)

    return is_error


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
