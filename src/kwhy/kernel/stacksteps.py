"""Up a kernel stack, call by call: where an unwinder stands, and what one step tells."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Word = Callable[[int], int]
"""The word at a stack address; raises LookupError."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an unwinder stands: program counter, stack pointer, frame pointer.

    ``interrupted``: the program counter is the next instruction to run, not one behind a call.
    """

    pc: int
    sp: int
    fp: int
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One frame: ``cfa`` is its caller's stack pointer before the call.

    ``regs``: where an exception saved the registers of what it interrupted. ``caller`` None: the
    stack ends here, or goes on in user space, or (``lost``) its words make no sense.
    """

    cfa: int
    caller: Place | None = None
    regs: int | None = None
    lost: bool = False


class Unwinder(Protocol):
    """How an architecture's kernel stacks are read."""

    def asleep(self, sp: int, word: Word) -> tuple[Place, dict[str, int]]:
        """Where a task sleeps whose stack pointer was ``sp``, and the registers that it saved.

        Raises LookupError when that is no stack pointer.
        """

    def up(self, at: Place, word: Word) -> Step:
        """The frame at a place. Raises LookupError where no rule is known."""
