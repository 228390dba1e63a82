"""The answer of ``kwhy spin``: the loop that a thread is in, and what keeps it there."""

from dataclasses import dataclass, field
from typing import Literal

from kwhy.verdict import common
from kwhy.verdict.common import ADDED, JSON, SCHEMA, Confidence, Evidence, KernelId
from kwhy.verdict.fail import Condition

State = Literal[
    "endless", "slow", "looping", "lock", "interrupts", "busy", "user", "asleep", "unknown"
]
"""What the thread does.

endless     a loop whose way out depends on nothing that changes
slow        a loop that comes nearer to its end
looping     a loop that was not left; whether it ends is not known
lock        it waits for a lock by spinning
interrupts  interrupts take its time, not its own code
busy        it goes to the kernel and comes back, again and again
user        it burns time outside of the kernel
asleep      it does not run
unknown     it runs, but cannot be seen
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """Who was watched; ``seconds`` of watching, ``samples`` of its running."""

    pid: int
    tid: int
    comm: str
    seconds: float
    samples: int
    user: int = 0
    """Samples outside of the kernel."""
    ticks: int | None = None
    """Clock ticks that it ran in the kernel meanwhile."""
    chosen: str | None = field(default=None, metadata=ADDED)
    """Why this thread, when a whole process was asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopLine:
    """A source line of the loop; ``samples`` that were taken in it."""

    file: str
    line: int
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Straight-line code of the loop by its offset; ``hits`` None: it was not counted."""

    offset: str
    hits: int | None
    samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The smallest loop that holds every sample. Hits are counted by hardware breakpoints, None
    where none could be set. ``head`` is an offset in ``function``; ``also`` are the functions that
    it hands over to and that hand back, by jumps."""

    function: str
    head: str
    file: str | None
    line: int | None
    blocks: tuple[Block, ...]
    lines: tuple[LoopLine, ...]
    samples_inside: int
    samples_outside: int
    entry_hits: int | None
    head_hits: int | None
    exit_hits: int | None
    also: tuple[str, ...] = field(default=(), metadata=ADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A condition of the loop and the way that it always went, None: both.

    ``leaves``: one way leads out of the loop; ``wanted`` is then what the condition has to be for
    that.
    """

    file: str | None
    line: int | None
    function: str
    expr: str
    always: bool | None
    offset: str = ""
    leaves: bool = False
    wanted: bool | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalleeResult:
    """What a function that the loop calls returned, "0" or "0, 1"; None when it was not seen."""

    function: str
    ret: str | None
    offset: str = ""
    decides: bool = False
    """The way out of the loop depends on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registers:
    """At the loop's head: those that never changed, with their value, and those that did."""

    constant: dict[str, str]
    varying: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """Something that the way out depends on. ``how``: constant, cycle, counter, varying."""

    expr: str
    value: str
    how: Literal["constant", "cycle", "counter", "varying"]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """The lock that is waited for. ``holder`` says what is known of who holds it."""

    kind: str
    address: str | None
    name: str | None
    wanted_by: str
    holder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A function on the thread's stack that never returned; innermost first."""

    function: str
    file: str | None
    line: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLines:
    """Lines of source, ``first`` the number of ``lines[0]``."""

    file: str
    first: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """A callee of the loop, run offline on the loop's memory. ``ret`` None: it did not return.

    ``agrees``: it returned what it was seen to return; only then its reasons count.
    """

    call: str
    ret: str | None
    agrees: bool
    because: tuple[Condition, ...]
    instructions: int
    stopped: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spin:
    """The answer. ``loop`` is None when the thread is in none."""

    summary: str
    confidence: Confidence
    kernel: KernelId
    evidence: Evidence
    thread: Thread
    state: State
    loop: Loop | None = None
    branches: tuple[Branch, ...] = ()
    calls: tuple[CalleeResult, ...] = ()
    registers: Registers = Registers(constant={}, varying=())
    candidates: tuple[str, ...] = ()
    schema: str = SCHEMA
    kind: Literal["spin"] = "spin"
    operands: tuple[Operand, ...] = field(default=(), metadata=ADDED)
    stack: tuple[Frame, ...] = field(default=(), metadata=ADDED)
    lock: Lock | None = field(default=None, metadata=ADDED)
    ends_when: str = field(default="", metadata=ADDED)
    """What would have to change for the loop to end."""
    recovery: tuple[str, ...] = field(default=(), metadata=ADDED)
    """What is known to end it without harm: told, never done."""
    advice: tuple[str, ...] = field(default=(), metadata=ADDED)
    look: tuple[str, ...] = field(default=(), metadata=ADDED)
    """Commands that look where samples cannot."""
    source: tuple[SourceLines, ...] = field(default=(), metadata=ADDED)
    deep: tuple[Inside, ...] = field(default=(), metadata=ADDED)
    contradiction: str | None = field(default=None, metadata=ADDED)

    def to_json(self) -> JSON:
        """The answer as the JSON object of the schema."""
        return common.to_json(self)
