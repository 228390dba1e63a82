"""What an answer is: the verdict of ``kwhy fail`` and the JSON it is printed as.

The classes mirror the schema ``kwhy.verdict/1`` (``report/schema/verdict-1.json``,
``docs/verdict.md``) key for key. They hold no analysis and no text layout: ``diagnose`` fills them,
``report`` renders them. Sequences are tuples, so that a verdict is a value: two runs over one case
compare equal.

A key of the contract is always written, also when it is empty. A key added to it later (marked
``ADDED`` below) is written only when it says something.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args, get_origin

from kwhy.errors import InputError

SCHEMA: Final = "kwhy.verdict/1"

Confidence = Literal["observed", "deduced", "ambiguous", "unknown"]
"""How sure the answer is.

observed   the deciding branch itself was traced, probed or executed
deduced    the only path that is consistent with everything seen
ambiguous  several paths remain: they are the candidates
unknown    the failing call is known, the reason is not
"""

MarkKind = Literal["path", "decides", "skipped", "result"]
"""What a marked line is to the path: on it, its deciding condition, passed by, what it led to."""

JSON = dict[str, Any]


ADDED: Final = {"added": True}
"""Marks a field that is not among the contract's keys: not written while it has its default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelId:
    """Which kernel the answer is about. ``build_id`` is lower-case hex without separators."""

    release: str
    build_id: str
    arch: str = "x86_64"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the answer rests on.

    ``rounds`` counts recordings, ``events`` decoded trace events, ``lost`` events that the ring
    buffer dropped, ``probes`` the probes that were armed (as the user would write them),
    ``emulated`` the instructions executed offline. ``notes`` are sentences: what was missing and
    what that cost.
    """

    rounds: int = 0
    events: int = 0
    lost: int = 0
    probes: tuple[str, ...] = ()
    emulated: int = 0
    notes: tuple[str, ...] = ()


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
        data: JSON = {"schema": self.schema, "kind": self.kind}
        data.update(_encode(self))
        return data

    @classmethod
    def from_json(cls, data: JSON) -> "Verdict":
        """The verdict that ``data`` describes. Unknown keys are ignored.

        Raises InputError when ``data`` is of another schema, or lacks or mistypes a key.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise InputError(f"not a verdict of schema {SCHEMA}: {found!r}; use a matching kwhy")
        verdict: Verdict = _decode(cls, data, "verdict")
        return verdict


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        pairs = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {f.name: _encode(item) for f, item in pairs if not _silent(f, item)}
    if isinstance(value, (tuple, list)):
        return [_encode(item) for item in value]
    return value


def _silent(f: "dataclasses.Field[Any]", item: Any) -> bool:
    """Whether the field is an added one that says nothing."""
    return bool(f.metadata.get("added")) and item == f.default


def _decode(wanted: Any, value: Any, where: str) -> Any:
    """``value`` (parsed JSON) as the annotated type ``wanted``; ``where`` names it in errors."""
    shape = get_origin(wanted)
    if shape is Literal:
        return _require(value in get_args(wanted), value, where)
    if shape in (types.UnionType, typing.Union):
        if value is None:
            return None
        (inner,) = (arg for arg in get_args(wanted) if arg is not type(None))
        return _decode(inner, value, where)
    if shape is tuple:
        _require(isinstance(value, (list, tuple)), value, where)
        item = get_args(wanted)[0]
        return tuple(_decode(item, entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if dataclasses.is_dataclass(wanted):
        return _decode_object(typing.cast(type, wanted), value, where)
    if wanted is int:  # JSON has no booleans among its integers
        return _require(isinstance(value, int) and not isinstance(value, bool), value, where)
    return _require(isinstance(value, wanted), value, where)


def _decode_object(wanted: type, value: Any, where: str) -> Any:
    _require(isinstance(value, dict), value, where)
    hints = typing.get_type_hints(wanted)
    given = {}
    for f in dataclasses.fields(wanted):
        if f.name in value:
            given[f.name] = _decode(hints[f.name], value[f.name], f"{where}.{f.name}")
        elif f.default is dataclasses.MISSING:
            raise InputError(f"damaged verdict: {where} has no {f.name}")
    return wanted(**given)


def _require(good: bool, value: Any, where: str) -> Any:
    if not good:
        raise InputError(f"damaged verdict: {where} cannot be {value!r:.60}")
    return value
