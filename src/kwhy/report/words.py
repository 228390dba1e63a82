"""A verdict's numbers in words: errnos by name, conditions as true or false."""

import re
from typing import Final

from kwhy.record import errno
from kwhy.verdict import Candidate, ChainLink, Condition, Confidence, Verdict

_HEADLINE: Final = 100  # characters of a condition that still make a headline

CONFIDENCE: Final[dict[Confidence, str]] = {
    "observed": "the deciding branch itself was traced, probed or executed",
    "deduced": "the only path that is consistent with everything seen",
    "ambiguous": "several paths are consistent with everything seen",
    "unknown": "what was seen does not lead to a reason",
}


def errno_name(value: int) -> str:
    """The name of a returned value: -5 is "-EIO"; a value that is no errno is its number."""
    name = errno.errno_name(value) if value < 0 else None
    return f"-{name}" if name else str(value)


def returned(link: ChainLink) -> str:
    """What a function of the chain returned, in words."""
    return "return value not seen" if link.ret is None else f"returned {errno_name(link.ret)}"


def truth(condition: Condition, *, whole: bool = False) -> str:
    """A condition and which way it went: "is_current_pgrp_orphaned() is true".

    Of a compound condition the part that decided, unless the ``whole`` is asked for.
    """
    part = None if whole else condition.atom
    text = " ".join((part or condition.text).split())
    if not text or text.startswith("switch"):
        return " ".join(condition.expr.split())
    if text.startswith(("case ", "default")):
        return f"{text.rstrip(':')} is taken"
    if condition.case is not None:
        went = "has no case of its own" if condition.case == "default" else f"is {condition.case}"
        return f"{text} {went}"
    return f"{text} is {'true' if condition.taken else 'false'}"


def named(expr: str) -> bool:
    """Whether all of a machine term has a name; one of stack slots and unknowns tells nobody."""
    return "?" not in expr and not re.search(r"\bstack[-+]", expr)


def held(condition: Condition) -> str | None:
    """What held in terms of values, where that says more than the condition itself."""
    expr = " ".join(condition.expr.split())
    known = {" ".join(text.split()) for text in (condition.text, condition.atom or "")}
    trivial = {f"{text}{end}" for text in known for end in ("", " != 0", " == 0", " == NULL")}
    for operand in condition.operands:
        trivial.add(f"{operand.expr} == {operand.value}")
        if operand.value.startswith("not "):
            trivial |= {f"{operand.expr} != {zero}" for zero in ("0", "NULL")}
    if not named(expr) or not re.search(r"\b[A-Za-z_]", expr):
        return None
    return None if expr in trivial or not condition.text else expr


def reason(verdict: Verdict) -> str:
    """The answer in half a line, to stand behind the call and its errno."""
    if verdict.confidence == "ambiguous" and verdict.candidates:
        return f"{len(verdict.candidates)} places fit everything that was seen"
    if verdict.conditions:
        last = verdict.conditions[-1]
        short = truth(last)
        memory = verdict.origin.memory if verdict.origin else None
        read = f"; the error was in {memory}" if memory else ""
        return f"{short if len(short) <= _HEADLINE else 'decided'} in {last.function}(){read}"
    said = f"{verdict.call.syscall} failed with {verdict.call.errno}"
    return verdict.summary.removeprefix(said).lstrip(":;, ") or verdict.summary


def place(file: str | None, line: int | None, offset: str | None = None) -> str:
    """``file:line`` where known, else the offset, else nothing."""
    if file and line:
        return f"{file}:{line}"
    return file or offset or ""


def candidate_place(candidate: Candidate) -> str:
    """Where a candidate decides."""
    last = candidate.conditions[-1] if candidate.conditions else None
    if last is not None and (last.line or last.offset):
        return place(last.file, last.line, last.offset)
    origin = candidate.origin
    return place(origin.file, origin.line, f"{origin.function}+{origin.offset or '?'}")


def count(number: int, one: str, many: str | None = None) -> str:
    """``1,234 events``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
