"""What the rest of kwhy knows of a recording: calls, system calls, probe hits."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol


class SymbolLike(Protocol):
    """A symbol as `record` uses it; `kwhy.kernel.symbols.Symbol` is one."""

    @property
    def name(self) -> str: ...
    @property
    def address(self) -> int: ...


class SymbolsLike(Protocol):
    """Names of addresses; `kwhy.kernel.symbols.Symbols` is one."""

    def at(self, address: int, /) -> SymbolLike | None:
        """The symbol that contains `address`."""
        ...


class CodeHints(Protocol):
    """What the live code says about calls; answers None when it cannot tell."""

    def direct_target(self, site: int, /) -> int | None:
        """Start of the function that the call instruction before return address `site` names."""
        ...

    def callees(self, function: int, /) -> Collection[int] | None:
        """Starts of all functions that `function` calls or jumps to directly (cold part too)."""
        ...

    def traceable(self, function: int, /) -> bool | None:
        """Whether the function tracer sees calls of `function`."""
        ...

    def repeats(self, function: int, site: int, /) -> bool | None:
        """Whether the call in `function` that returns to `site` lies in a loop."""
        ...


Kind = Literal["traced", "implicit", "interrupt"]


@dataclass(slots=True)
class Call:
    """One call of a kernel function.

    `function` is the start of its symbol, `site` the return address in the caller (None: not
    known, or there is none: a tail call, an implicit frame). `time` is in ns of the trace clock.
    `kind`: "traced" by its own event; "implicit": an untraced function (inline ones kept out of
    line, lib/, noinstr) deduced from a child's return address; "interrupt": root of what ran on
    top of the call (interrupt, exception, softirq). `tail`: the parent jumped to it instead of
    calling. `guessed`: its place under the parent is a guess, no code said so.
    `duration` (ns) comes from function_graph only.
    """

    function: int
    site: int | None
    time: int
    children: list["Call"] = field(default_factory=list)
    kind: Kind = "traced"
    tail: bool = False
    guessed: bool = False
    duration: int | None = None

    def walk(self) -> Iterator["Call"]:
        """This call and all below it, in order of time, without recursion."""
        stack = [self]
        while stack:
            call = stack.pop()
            yield call
            stack.extend(reversed(call.children))


@dataclass(slots=True)
class ProbeHit:
    """One hit of a dynamic probe: its event name, time (ns), task, address and fetched values."""

    name: str
    time: int
    tid: int
    ip: int | None
    values: dict[str, int | str]


@dataclass(slots=True)
class SyscallRecord:
    """One system call from entry to exit (times in ns of the trace clock).

    `calls` are its own calls from the root on, interrupts taken out (`interrupts`); `entry` is the
    call of its own function (``__x64_sys_ioctl``), somewhere below a root. `index` is the window's
    number in the recording. `lost`: events were lost while it ran, so that calls may be
    missing. `compat`: made by a 32-bit program. `barred`: only its exit was traced (see
    ``Windows``), so that `args` are not known.
    """

    pid: int
    tid: int
    comm: str
    nr: int
    name: str
    args: tuple[int, ...]
    ret: int
    enter: int
    exit: int
    calls: list[Call]
    lost: bool
    probes: list[ProbeHit]
    index: int
    interrupts: list[Call] = field(default_factory=list)
    entry: Call | None = None
    compat: bool = False
    barred: bool = False
    notes: list[str] = field(default_factory=list)

    def walk(self) -> Iterator[Call]:
        """All its calls, in order of time."""
        for call in self.calls:
            yield from call.walk()


@dataclass(slots=True)
class TaskInfo:
    """One task (thread) seen in the recording."""

    tid: int
    pid: int
    comm: str
    parent: int | None = None
    start: int | None = None  # ns; None: was there before
    end: int | None = None
    status: int | None = None  # exit status given to exit or exit_group, & 0xff
    signal: int | None = None  # deadly signal, when the recording tells
    names: list[tuple[int, str]] = field(default_factory=list)  # (since, comm)

    def comm_at(self, time: int) -> str:
        """Its name at a time."""
        name = self.comm
        for since, text in self.names:
            if since <= time:
                name = text
        return name
