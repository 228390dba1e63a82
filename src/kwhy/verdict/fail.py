"""The answer of ``kwhy fail``: the call, the statement and condition that refused it, and why."""

from dataclasses import dataclass, field
from typing import Literal

from kwhy.verdict import common
from kwhy.verdict.common import ADDED, JSON, SCHEMA, Confidence, Evidence, KernelId

MarkKind = Literal["path", "decides", "skipped", "result"]
"""What a marked line is to the path: on it, its deciding condition, passed by, what it led to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCall:
    """The system call that failed. ``args`` are as the kernel got them, hex; ``ret`` is -errno."""

    pid: int
    tid: int
    comm: str
    syscall: str
    args: tuple[str, ...]
    ret: int
    errno: str
    decoded: tuple[str, ...] = field(default=(), metadata=ADDED)
    """``args`` in the words of the manual (``TCSETSW``), one for one, "" if unknown."""
    barred: bool = field(default=False, metadata=ADDED)
    """Refused before the kernel's function for it was entered: ``args`` are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """One side of a comparison: its source text, the value seen, and where the value came from.

    ``source`` is one of traced, probe, return probe, executed, memory, deduced, constant, syscall
    argument; free text is allowed. ``value`` is text as a reader wants it: "1", "SIGTTOU (22)".
    """

    expr: str
    value: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A source statement, e.g. ``ret = -EIO;`` with the line it stands on."""

    text: str
    line: int | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A decisive branch: the source condition that holds it, and which way it went.

    ``text`` is the condition as it stands in the source, ``expr`` what held (``… != 0``), ``taken``
    whether the source condition was true. ``offset`` locates the machine branch, "function+0xb9";
    it is all there is without debug information.
    """

    file: str | None
    line: int | None
    function: str
    text: str
    expr: str
    taken: bool
    operands: tuple[Operand, ...] = ()
    offset: str | None = field(default=None, metadata=ADDED)
    statement: Statement | None = field(default=None, metadata=ADDED)
    """The statement that the branch leads to."""
    atom: str | None = field(default=None, metadata=ADDED)
    """The part of a compound condition (``a && b``) that decided."""
    case: str | None = field(default=None, metadata=ADDED)
    """Of a switch: the label it went to, "default" also when it has none for the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The function that made the errno, and where in it.

    ``inlined`` lists the functions inlined there, innermost first; ``offset`` is hex from the start
    of the out-of-line ``function``.
    """

    function: str
    inlined: tuple[str, ...] = ()
    file: str | None = None
    line: int | None = None
    offset: str | None = None
    comment: str | None = field(default=None, metadata=ADDED)
    """The comment that stands above the deciding function in the source."""
    statement: Statement | None = field(default=None, metadata=ADDED)
    module: str | None = field(default=None, metadata=ADDED)
    memory: str | None = field(default=None, metadata=ADDED)
    """Where the errno was read from, if the function did not make it itself: "sk->sk_err"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """Where the refusal was first decided, when the errno was replaced on its way up."""

    function: str
    errno: str
    inlined: tuple[str, ...] = ()
    file: str | None = None
    line: int | None = None
    offset: str | None = None
    conditions: tuple[Condition, ...] = ()
    comment: str | None = field(default=None, metadata=ADDED)
    statement: Statement | None = field(default=None, metadata=ADDED)
    module: str | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLink:
    """One function that passed the error on. ``ret`` is what it returned; None when not known."""

    function: str
    ret: int | None
    file: str | None = None
    line: int | None = None
    note: str | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One of several places that fit everything seen. ``why`` says what would settle it."""

    origin: Origin
    conditions: tuple[Condition, ...] = ()
    chain: tuple[ChainLink, ...] = ()
    why: str = ""
    probe: str | None = field(default=None, metadata=ADDED)
    """The probe that would tell this candidate from the others: "function+0xb9"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManualParagraph:
    """What the manual says about that errno of that call. ``page`` is like "tcsetattr(3)"."""

    page: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A marked line of an excerpt. Columns count from 1; ``end_column`` is one past the last."""

    line: int
    kind: MarkKind
    column: int | None = None
    end_column: int | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """Lines of a source file around the decision, ``first`` being the number of ``lines[0]``."""

    file: str
    first: int
    lines: tuple[str, ...]
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction of the path, for a reader without source. ``offset`` is "function+0xb9"."""

    offset: str
    text: str
    kind: MarkKind = "path"
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherFailure:
    """Another call that failed in the same run, and why it was not the one to explain."""

    syscall: str
    errno: str
    count: int = 1
    comm: str | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer to one question. ``origin`` is None only when nothing could be said (unknown)."""

    summary: str
    confidence: Confidence
    kernel: KernelId
    evidence: Evidence
    call: FailedCall
    origin: Origin | None
    conditions: tuple[Condition, ...] = ()
    """The decisive branches in the origin function, outermost first, the innermost last."""
    chain: tuple[ChainLink, ...] = ()
    """Origin first, system call last."""
    root: Root | None = None
    manual: tuple[ManualParagraph, ...] = ()
    kmsg: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    schema: str = SCHEMA
    kind: Literal["fail"] = "fail"
    source: tuple[Excerpt, ...] = field(default=(), metadata=ADDED)
    path: tuple[Instruction, ...] = field(default=(), metadata=ADDED)
    others: tuple[OtherFailure, ...] = field(default=(), metadata=ADDED)

    def to_json(self) -> JSON:
        """The verdict as the JSON object of the schema; keys in the order of the documentation."""
        return common.to_json(self)

    @classmethod
    def from_json(cls, data: JSON) -> "Verdict":
        """The verdict that ``data`` describes; raises InputError, see :func:`common.from_json`."""
        return common.from_json(cls, data)
