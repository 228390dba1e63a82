"""Looking where samples cannot: the callees that keep a loop going, run offline on its memory."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kwhy.arch import Arch
from kwhy.diagnose import spin_words
from kwhy.diagnose.spin_loop import Watched, classify, result_values
from kwhy.diagnose.spin_watch import Watcher, value
from kwhy.flow.cfg import Code, Segment
from kwhy.kernel.model import Kernel
from kwhy.verdict.call import CallVerdict
from kwhy.verdict.spin import Inside

MAX_CALLS = 6
MAX_INSIDE = 16
DEPTH = 4
ATTEMPTS = 8
"""Readings of a live target's memory: one may show a lock just taken, or another torn state."""

#: Names of functions that tell whether there is something, and of those that fetch it.
_TELLS = re.compile(r"empty|pending|has_|have_|more|ready|avail|any")
_FETCHES = re.compile(r"peek|find|next|get|first|pop|dequeue|consume|take|pull")


@dataclass(frozen=True, slots=True)
class Question:
    """A call as the loop makes it, and what it always returned there."""

    function: str
    text: str
    seen: int
    width: int = 8  # bytes of the result that count

    def right(self, result: str) -> bool:
        """Whether a result, as it is shown, is the one that was seen."""
        found = value(result)
        return found is not None and (found - self.seen) % (1 << 8 * self.width) == 0


def questions(
    kernel: Kernel, code: Code, watcher: Watcher, watched: Watched, seconds: float
) -> list[Question]:
    """The calls of the loop that return the same each round, with the arguments that they get.

    Only calls whose every argument is the same each round, and known to be one.
    """
    arch = code.arch
    chosen = []
    for segment in watched.alive():
        if segment.kind != "call" or segment.target is None:
            continue
        name = spin_words.called(code, watched, segment)
        prototype = kernel.prototype(code.resolve(segment.target))
        if prototype is None or not prototype.params or prototype.optimised:
            continue
        if kernel.types.is_void(prototype.ret) or not _tested(watched, arch, segment):
            continue
        site = segment.last.end
        width = spin_words.result_width(kernel, watched, arch, prototype.ret, site)
        found = classify(result_values(watched, arch, site, width))
        if found is not None and found.how == "constant":
            count = len(prototype.params)
            chosen.append((segment.last.address, name, count, found.first, width))
    chosen = chosen[:MAX_CALLS]
    passed = watcher.breakpoints([address for address, *_ in chosen], seconds)
    out = []
    for address, name, count, result, width in chosen:
        arguments = []
        for register in arch.arguments[:count]:
            values = {sample.registers[register] for sample in passed[address].samples}
            arguments += [f"{value:#x}" for value in values] if len(values) == 1 else []
        if len(arguments) == count:
            out.append(Question(name, f"{name}({', '.join(arguments)})", result, width))
    return out


def _tested(watched: Watched, arch: Arch, segment: Segment) -> bool:
    """Whether a branch right behind a call looks at its result."""
    after = watched.function.segments.get(segment.last.end)
    return after is not None and after.kind in ("branch", "select") and any(
        arch.result in insn.uses for insn in after.insns
    )


def look_inside(
    kernel: Kernel, watcher: Watcher, asked: Sequence[Question], depth: int = DEPTH
) -> list[Inside]:
    """Each question run offline, and what decided it in turn, as deep as that is a call's result.

    A result that differs from the one that was seen is no answer.
    """
    out: list[Inside] = []
    todo = [(question, 0) for question in asked]
    while todo and len(out) < MAX_INSIDE:
        question, level = todo.pop(0)
        if any(each.call == question.text for each in out):
            continue
        found = watcher.inside(question.text, question.right, ATTEMPTS)
        if found is None:
            continue
        verdict, entered = found
        agrees = verdict.ret is not None and question.right(verdict.ret.value)
        out.append(
            Inside(
                call=question.text,
                ret=verdict.ret.value if verdict.ret is not None else None,
                agrees=agrees,
                because=verdict.because,
                instructions=verdict.executed.instructions,
                stopped=verdict.executed.reason,
            )
        )
        if agrees and level < depth:
            further = _further(kernel, verdict, entered)
            todo[:0] = [(each, level + 1) for each in further]
    return out


def _further(
    kernel: Kernel, verdict: CallVerdict, entered: dict[str, list[int]]
) -> list[Question]:
    """The call whose result decided a verdict, as a question of its own."""
    if not verdict.because:
        return []
    for operand in verdict.because[-1].operands:
        name = operand.expr.removesuffix("()")
        seen = value(operand.value.replace("NULL", "0"))
        prototype = kernel.types.prototype(name)
        if name == operand.expr or seen is None or name not in entered or prototype is None:
            continue
        width = kernel.types.size(prototype.ret) or 8
        arguments = [f"{each:#x}" for each in entered[name][: len(prototype.params)]]
        return [Question(name, f"{name}({', '.join(arguments)})", seen, width)]
    return []


def contradiction(found: Sequence[Inside]) -> str | None:
    """Two answers about the same object that do not go together.

    One function says that there is something, and another finds nothing: told by their names, so
    it is a hint, and both reasons stand beside it.
    """
    agreed = [each for each in found if each.agrees]
    for one in agreed:
        for other in agreed:
            if (_says_some(one), _finds_none(other)) == (True, True):
                first, second = one.call.split("(")[0], other.call.split("(")[0]
                return (
                    f"{first}() says that there is something, {second}() finds nothing: on the "
                    "same memory, so neither will ever change its mind"
                )
    return None


def _says_some(each: Inside) -> bool:
    name, ret = each.call.split("(")[0], value(each.ret or "")
    told = _TELLS.search(name)
    return told is not None and ret is not None and (ret == 0) == (told[0] == "empty")


def _finds_none(each: Inside) -> bool:
    name = each.call.split("(")[0]
    return bool(_FETCHES.search(name)) and value(each.ret or "") == 0
