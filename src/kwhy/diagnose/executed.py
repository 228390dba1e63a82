"""Branches of an execution in the source's words, each with the values that it compared."""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kwhy.diagnose.errors import made
from kwhy.diagnose.sites import led_to, locate
from kwhy.diagnose.truth import truth
from kwhy.diagnose.words import Words, number, oriented, readable
from kwhy.emulate.history import Branch, History
from kwhy.flow.explore import Decision
from kwhy.flow.terms import Term, mask
from kwhy.kernel.model import Kernel
from kwhy.verdict import Condition, Operand, Statement
from kwhy.verdict.call import Line

MAX_CONDITIONS = 100
MAX_LINES = 50_000
_STEPS = {"low": 2, "sext": 2, "add": 1, "neg": 2, "not": 2, "join": 2, "bin": 3}
"""Where a term that is made of one other has it."""
_NAMED = re.compile(r"\b[A-Za-z_]")
"""In a comparison of mere numbers nothing is told."""
_SOURCES = {"mem": "memory", "init": "argument", "ret": "executed", "percpu": "memory"}


def conditions(kernel: Kernel, history: History, steps: Sequence[int]) -> tuple[Condition, ...]:
    """The branches at ``steps``, in order; one that went the same way again is told once, the last
    time. At most MAX_CONDITIONS, the last ones."""
    words = _words(kernel, history)
    last: dict[tuple[int, bool], int] = {}
    for step in steps:
        last[history.steps[step], history.taken(step)] = step
    chosen = sorted(last.values())[-MAX_CONDITIONS:]
    told = [condition(kernel, words, history, history.branches[step]) for step in chosen]
    out: list[Condition] = []
    for one in told:  # several jumps may make up one source condition: the last of them decided
        same = out and one.text and (one.file, one.line, one.text, one.taken) == (
            out[-1].file, out[-1].line, out[-1].text, out[-1].taken
        )  # fmt: skip
        if (same and not one.operands) or not (one.text or _NAMED.search(one.expr)):
            continue
        out.append(one)
    return tuple(out)


def _words(kernel: Kernel, history: History) -> Words:
    ran = (insn for block in history.steps_of.blocks for insn in block.insns)
    return Words(kernel, history, history.arch, made(kernel, ran))


def condition(kernel: Kernel, words: Words, history: History, branch: Branch) -> Condition:
    """One branch as a condition of a verdict.

    Without ``text`` where it is not clear whether the source condition was true: a part of a
    compound one, say. What held is told all the same.
    """
    site = locate(kernel, branch.address)
    decision = Decision(branch.address, branch.kind, branch.taken, branch.condition, branch.target)
    after = _following(history, branch.step)
    insn = history.insn(branch.step)
    other_way = [insn.end if branch.taken else branch.target] if insn else []
    frames = kernel.frames(branch.address)
    # What an inlined predicate compares may be the reverse of what the condition asks.
    same = bool(frames) and frames[0].function == site.function
    true = truth(kernel, site, decision, after, other_way, same=same, guess=False)
    source = site.condition if true is not None else None
    statement = led_to(kernel, site, true) if true is not None else None
    return Condition(
        file=site.file,
        line=site.line,
        function=site.function,
        text=source.text if source else "",
        expr=words.condition(branch.condition, branch.taken),
        taken=branch.taken if true is None else true,
        operands=operands(words, history, branch),
        offset=site.offset,
        statement=Statement(text=statement.text, line=statement.start, file=site.file)
        if statement
        else None,
        atom=source.atom if source and source.certain and source.atom != source.text else None,
    )


def _following(history: History, step: int, count: int = 4) -> list[int]:
    """The starts of the next blocks that ran in the same frame."""
    return [history.steps[later] for later in history.blocks_after(step, count)]


def operands(words: Words, history: History, branch: Branch) -> tuple[Operand, ...]:
    """What was compared, with its values at that moment."""
    if branch.condition is None:
        return ()
    _, a, b, size = oriented(branch.condition, branch.taken)
    out = []
    for term, other in ((a, b), (b, a)):
        if isinstance(term, int):
            if term == 0 and not isinstance(other, int):
                continue
            text = words.value(term, words.name(other)[1], size)
            out.append(Operand(expr=text, value=text, source="constant"))
            continue
        text, kind = words.name(term)
        value = history.value(term)
        if readable(text) and value is not None:
            shown = number(value & mask(size))
            if kind is not None or _is_result(term):
                shown = words.value(value & mask(size), kind, size)
            out.append(Operand(expr=text, value=shown, source=_source(term)))
    return tuple(out)


def _source(term: Term) -> str:
    inner: Any = term
    while isinstance(inner, tuple) and inner[0] in _STEPS:
        if inner[0] == "bin" and not isinstance(inner[4], int):
            break
        inner = inner[_STEPS[inner[0]]]
    tag = inner[0] if isinstance(inner, tuple) else ""
    return _SOURCES.get(tag, "executed")


def _is_result(term: Term) -> bool:
    while isinstance(term, tuple) and term[0] in ("low", "sext"):
        term = term[2]
    return isinstance(term, tuple) and term[0] == "ret"


def trace(kernel: Kernel, history: History) -> tuple[Line, ...]:
    """What ran, in order: a source line (without lines, an instruction) at a time.

    At most MAX_LINES, the first ones.
    """
    words = _words(kernel, history)
    text_of = _texts(kernel)
    out: list[Line] = []
    last: tuple[Any, ...] = ()
    for step, address in enumerate(history.steps):
        frame = history.frame_at[step]
        found = kernel.frames(address)
        insn = history.insn(step)
        if found and found[0].line:
            key: tuple[Any, ...] = (frame, found[0].file, found[0].line)
            where = f"{found[0].file}:{found[0].line}"
            text = text_of(found[0].file, found[0].line)
        else:
            key, where = (step,), locate(kernel, address).offset
            text = insn.text if insn else "?"
        if key != last and len(out) == MAX_LINES:
            break
        values = _values(words, history, step)
        if key == last:
            known = "; ".join(v for v in (out[-1].values, values) if v)
            out[-1] = replace(out[-1], values=known, count=out[-1].count + 1)
        else:
            out.append(Line(where=where, text=text, depth=_depth(history, frame), values=values))
        last = key
    return tuple(out)


def _texts(kernel: Kernel) -> Callable[[str, int], str]:
    """Gives the text of a source line, "" without it."""

    @functools.cache
    def lines(file: str) -> list[str]:
        return (kernel.source(file) or "").split("\n")

    def text(file: str, line: int) -> str:
        return lines(file)[line - 1].strip() if line <= len(lines(file)) else ""

    return text


def _depth(history: History, frame: int) -> int:
    depth = 0
    parent = history.all_frames[frame].parent
    while parent is not None:
        depth, parent = depth + 1, history.all_frames[parent].parent
    return depth


def _values(words: Words, history: History, step: int) -> str:
    branch = history.branches.get(step)
    if branch is None or branch.condition is None:
        return ""
    return ", ".join(
        f"{o.expr} = {o.value}" for o in operands(words, history, branch) if o.source != "constant"
    )
