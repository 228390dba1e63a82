"""What an incident is: a program, the system call that it makes fail, and why that call fails."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PROGRAMS: Final = Path(__file__).with_name("programs")
"""Where the C sources are."""


def series_key(series: str) -> tuple[int, ...]:
    """The order of kernel series: "5.10" comes after "5.9"."""
    return tuple(int(part) for part in series.split("."))


@dataclass(frozen=True, slots=True)
class Truth:
    """A condition in the kernel's source that decides, in the kernel series where it stands so.

    ``text`` is the whole condition (inside ``if (...)``, ``while (...)``, ``switch (...)``, or
    before ``?``), folded to one line; ``atom`` is its operand that decides when it is compound.
    ``function`` is the function whose source text holds it, an inline one included; ``file`` is
    that function's file. ``holds`` tells whether ``text`` was true (for ``switch``: always).
    There is no line number here: lines move with every update of a kernel.
    """

    file: str
    function: str
    text: str
    atom: str | None = None
    holds: bool = True
    since: str | None = None
    until: str | None = None

    def in_series(self, series: str) -> bool:
        """Whether this is the truth in the kernels of that series; both ends are included."""
        key = series_key(series)
        return (self.since is None or series_key(self.since) <= key) and (
            self.until is None or key <= series_key(self.until)
        )


@dataclass(frozen=True, slots=True)
class Incident:
    """A program that makes one system call fail, and the conditions that decide it.

    ``errno`` is what the caller gets. ``truths`` are the acceptable answers to "which condition
    decided?", best first: more than one where the compiler may merge two conditions or inline a
    helper. ``roots`` say where the refusal was first decided, when ``truths`` only pass it on or
    replace it. ``named`` marks those that the project's first promise names. ``trap`` says what
    makes the incident hard to explain.
    """

    name: str
    syscall: str
    errno: str
    truths: tuple[Truth, ...]
    roots: tuple[Truth, ...] = ()
    named: bool = False
    trap: str = ""
    options: tuple[str, ...] = field(default=())
    """Options that ``kwhy fail`` needs to find this call among others that fail as well."""

    @property
    def source(self) -> Path:
        """The C source of the program."""
        return PROGRAMS / f"{self.name}.c"

    def in_series(self, series: str) -> bool:
        """Whether this can happen in the kernels of that series."""
        return any(truth.in_series(series) for truth in self.truths)

    def truths_in(self, series: str) -> tuple[Truth, ...]:
        """The acceptable answers for that kernel series, best first."""
        return tuple(truth for truth in self.truths if truth.in_series(series))

    def roots_in(self, series: str) -> tuple[Truth, ...]:
        """Where the refusal was first decided, in that kernel series."""
        return tuple(truth for truth in self.roots if truth.in_series(series))
