"""What all answers share: the schema, how sure an answer is, and the JSON it is printed as.

An answer is a tree of frozen dataclasses that mirror the schema ``kwhy.verdict/1`` key for key; one
file per kind. They hold no analysis and no text layout: ``diagnose`` fills them, ``report`` renders
them. Sequences are tuples, so that an answer is a value: two runs over one case compare equal.

A key of the contract is always written, also when it is empty. A key added to it later (marked
``ADDED``) is written only when it says something.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, cast, get_args, get_origin

from kwhy.errors import InputError

SCHEMA: Final = "kwhy.verdict/1"

Confidence = Literal["observed", "deduced", "ambiguous", "unknown"]
"""How sure the answer is.

observed   the deciding branch itself was traced, probed or executed
deduced    the only path that is consistent with everything seen
ambiguous  several paths remain: they are the candidates
unknown    what happened is known, the reason is not
"""

JSON = dict[str, Any]

T = TypeVar("T")

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


def noted(answer: T, *notes: str) -> T:
    """``answer`` (a dataclass with ``evidence``) with these sentences after its notes."""
    account: Evidence = cast(Any, answer).evidence
    more = dataclasses.replace(account, notes=(*account.notes, *notes))
    changed: T = dataclasses.replace(cast(Any, answer), evidence=more)
    return changed


def doubt(confidence: Confidence) -> int:
    """How unsure an answer is, to compare two: 0 for the surest."""
    return get_args(Confidence).index(confidence)


def to_json(answer: Any) -> JSON:
    """``answer`` (a dataclass with ``schema`` and ``kind``) as the JSON object of the schema."""
    data: JSON = {"schema": answer.schema, "kind": answer.kind}
    data.update(_encode(answer))
    return data


def from_json(kind: type[T], data: JSON) -> T:
    """The answer of class ``kind`` that ``data`` describes. Unknown keys are ignored.

    Raises InputError when ``data`` is of another schema, or lacks or mistypes a key.
    """
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise InputError(f"not a verdict of schema {SCHEMA}: {found!r}; use a matching kwhy")
    answer: T = _decode(kind, data, "verdict")
    return answer


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
