"""What became of a kernel function (or a system call) that was run offline."""

from dataclasses import dataclass, field
from typing import Literal

from kwhy.verdict import common
from kwhy.verdict.common import ADDED, JSON, SCHEMA, Confidence, Evidence, KernelId
from kwhy.verdict.fail import Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """``function`` and its ``args`` as they were written.

    ``values`` are the arguments' register values, hex. ``syscall`` names the system call of a dry
    run, whose kernel entry ``function`` then is.
    """

    function: str
    args: tuple[str, ...]
    values: tuple[str, ...] = field(default=(), metadata=ADDED)
    cpu: int = field(default=0, metadata=ADDED)
    pid: int | None = field(default=None, metadata=ADDED)
    comm: str | None = field(default=None, metadata=ADDED)
    syscall: str | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A typed value as text; ``text`` adds what a reader wants to know of it (a string, an errno,
    the symbol that a pointer leads to)."""

    value: str
    type: str
    text: str | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Out:
    """An out-parameter after the call."""

    name: str
    value: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """What the code changed, in its copy only. ``expr`` names the place as well as is known."""

    address: str
    size: int
    expr: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """How far it came: instructions, pages of memory used, where and why it stopped, what was left
    out. ``stopped_at`` None: it returned."""

    instructions: int
    pages: int
    stopped_at: str | None = None
    skipped: tuple[str, ...] = ()
    reason: str | None = field(default=None, metadata=ADDED)
    blocks: int = field(default=0, metadata=ADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A piece of the executed way: ``count`` instructions at one source line (or offset)."""

    where: str
    text: str
    depth: int = 0
    values: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CallVerdict:
    """``ret`` is None when the function is void or did not come to its end."""

    summary: str
    confidence: Confidence
    kernel: KernelId
    evidence: Evidence
    call: Called
    ret: Value | None
    because: tuple[Condition, ...]
    executed: Executed
    candidates: tuple[Value, ...] = ()
    """The results of two readings of a live target, when they differ."""
    schema: str = SCHEMA
    kind: Literal["call"] = "call"
    outs: tuple[Out, ...] = field(default=(), metadata=ADDED)
    writes: tuple[Write, ...] = field(default=(), metadata=ADDED)
    trace: tuple[Line, ...] = field(default=(), metadata=ADDED)

    def to_json(self) -> JSON:
        """The verdict as the JSON object of the schema."""
        return common.to_json(self)

    @classmethod
    def from_json(cls, data: JSON) -> "CallVerdict":
        """The verdict that ``data`` describes; raises InputError."""
        return common.from_json(cls, data)
