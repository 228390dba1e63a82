"""What is in an expression: its names, and what its parts turn out to be."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unicodedata import east_asian_width

from kwhy.errors import UsageError

_SHOWN = 100
"""Columns of an expression that an error shows."""


class ExpressionError(UsageError):
    """What is wrong with an expression, with a caret under the place."""

    def __init__(self, text: str, at: int, why: str) -> None:
        begin = max(0, min(at - _SHOWN // 2, len(text) - _SHOWN))
        line = re.sub(r"[\x00-\x1f\x7f]", " ", text)[begin : begin + _SHOWN]
        head = "..." if begin else ""
        tail = "..." if begin + _SHOWN < len(text) else ""
        before = line[: at - begin]
        pad = len(head) + len(before) + sum(east_asian_width(c) in "WF" for c in before)
        super().__init__(f"{why}\n  {head}{line}{tail}\n  {' ' * pad}^")


@dataclass(frozen=True, slots=True)
class Text:
    """A string argument: memory with these bytes is made, its address is passed."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Out:
    """``&NAME`` of an unknown name: memory is made, of the type that the parameter points to, or
    ``(TYPE *)&NAME`` says (``type`` is the pointer's)."""

    name: str
    type: Any = None


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument as it was written, and its value: a drgn object, a Text or an Out."""

    text: str
    value: Any
    at: int


@dataclass(frozen=True, slots=True)
class Call:
    """``name(arguments)``; ``at`` of anything counts columns of the whole text from 0.

    ``where`` is what stands behind an @: a source file, a module or an address that tells which of
    several functions is meant. ``target``: what is called, where that is an expression.
    """

    text: str
    name: str
    arguments: tuple[Argument, ...]
    at: int = 0
    where: str | None = None
    target: Any = None


@dataclass(slots=True)
class Names:
    """What an expression can refer to. Lookups raise LookupError."""

    program: Any
    address: Callable[[str], int | None]
    """Of a symbol without a type."""
    task: Callable[[int], int]
    """The task_struct of a process number, by address."""
    current: int
    percpu_base: Callable[[int], int]
    is_percpu: Callable[[int], bool]
    """Whether an address is that of a per-CPU variable's template."""
    cpu: int
    constants: dict[str, int] = field(default_factory=dict)
    """Names that only an interface knows, such as O_RDONLY."""
    macros: Callable[[], dict[str, int]] = dict
    """More of them, for names that the kernel's debug info does not have."""
    given: Callable[[str], Any] = lambda _name: None
    """The caller's own variables as drgn objects, before the kernel's; None for others."""
    make: Callable[[bytes], int] | None = None
    """Memory that holds these bytes, by address; None: none can be made."""
    run: Callable[[Call], Any] | None = None
    """What a function of the kernel returns, for a call inside of an expression."""
    is_code: Callable[[str], bool] = lambda _name: False
