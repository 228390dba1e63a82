"""Is a verdict right? Compares the JSON of ``kwhy fail`` with the truth of an incident."""

import re
from dataclasses import dataclass
from typing import Any

from kwhy.lab.incidents import Incident, Truth, carriers

JSON = dict[str, Any]

SURE = ("observed", "deduced")

# The compilers split functions: __tty_check_change.part.0, copy_process.cold.
_PART = re.compile(r"(\.(part|isra|constprop|cold)(\.\d+)?)+$")
# One body, three names: SYSCALL_DEFINE makes __x64_sys_X, __se_sys_X and __do_sys_X.
_SYSCALL = re.compile(r"^__(?:x64|se|do)_sys_")
_HINT = re.compile(r"\b(?:likely|unlikely|data_race)\s*\((.*)\)$")


@dataclass(frozen=True, slots=True)
class Judgement:
    """``word`` is right, ambiguous, unknown or wrong; ``why`` says what is wrong or missing."""

    word: str
    why: str = ""


def function_name(symbol: str) -> str:
    """The name as the source has it, whatever the compiler appended; one name per system call."""
    return _SYSCALL.sub("__do_sys_", _PART.sub("", symbol))


def fold(text: str) -> str:
    """A condition on one line, without the compiler's hints and the parentheses around it all."""
    text = re.sub(r"\s+", " ", text).strip()
    while True:
        inner = text
        if found := _HINT.match(text):
            inner = found[1].strip()
        elif text.startswith("(") and _closes_at_end(text):
            inner = text[1:-1].strip()
        if inner == text:
            return text
        if not _balanced(inner):
            return text
        text = inner


def _balanced(text: str) -> bool:
    depth = 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            return False
    return depth == 0


def _closes_at_end(text: str) -> bool:
    return text.endswith(")") and _balanced(text[1:-1])


def states(condition: JSON, truth: Truth) -> bool:
    """Whether a condition of a verdict is that truth: function, text, deciding part, outcome."""
    if function_name(condition["function"]) != function_name(truth.function):
        return False
    text, whole = fold(condition["text"]), fold(truth.text)
    if text not in (whole, fold(truth.atom or truth.text)):
        return False
    if "_for_each" in truth.text:
        return True  # a loop that ends: no outcome to speak of
    atom = condition.get("atom")
    if atom and truth.atom and fold(atom) != fold(truth.atom):
        return False
    return bool(condition["taken"]) == truth.holds


def origin_fits(origin: JSON | None, truths: tuple[Truth, ...]) -> bool:
    """Whether the out-of-line origin function is one whose code may hold one of the truths."""
    if origin is None:
        return False
    names = {function_name(each) for truth in truths for each in carriers(truth.function)}
    return function_name(origin["function"]) in names


def decides(answer: JSON, truths: tuple[Truth, ...]) -> bool:
    """Whether an answer (a verdict or a candidate) has a truth as its innermost condition."""
    conditions = answer.get("conditions") or []
    return bool(conditions) and any(states(conditions[-1], truth) for truth in truths)


def judge(verdict: JSON, incident: Incident, series: str, *, lines: bool) -> Judgement:
    """Compare. ``lines``: with debug information and source; else the function is all there is."""
    call = verdict["call"]
    if (call["syscall"], call["errno"]) != (incident.syscall, incident.errno):
        return Judgement("wrong", f"explains {call['syscall']} {call['errno']}")
    truths = incident.truths_in(series)
    if verdict["confidence"] == "unknown":
        return Judgement("unknown", verdict["summary"])
    if verdict["confidence"] == "ambiguous":
        candidates = verdict["candidates"]
        if any(
            decides(each, truths) if lines else origin_fits(each["origin"], truths)
            for each in candidates
        ):
            return Judgement("ambiguous", f"{len(candidates)} candidates")
        return Judgement("wrong", "the truth is not among the candidates: " + tell(verdict))
    if not origin_fits(verdict["origin"], truths):
        return Judgement("wrong", "another origin: " + tell(verdict))
    if lines and not decides(verdict, truths):
        return Judgement("wrong", "another condition: " + tell(verdict))
    root, roots = verdict.get("root"), incident.roots_in(series)
    if lines and root and root.get("conditions") and not decides(root, (*roots, *truths)):
        return Judgement("wrong", f"another root: {tell(root | {'origin': root})}")
    return Judgement("right", verdict["confidence"])


def tell(verdict: JSON) -> str:
    """What the verdict claims, in a line."""
    answers = verdict.get("candidates") or [verdict]
    claims = []
    for each in answers:
        origin = each.get("origin") or {}
        last = (each.get("conditions") or [{}])[-1]
        claims.append(
            f"{origin.get('function')}: {last.get('function')}: {last.get('text')!r}"
            f" {last.get('taken')}"
        )
    return "; ".join(claims)
