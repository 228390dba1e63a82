"""A machine branch in the source: which condition it belongs to, and whether that held."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kwhy.diagnose.words import number, oriented
from kwhy.flow.cfg import Function
from kwhy.flow.explore import Decision, Node
from kwhy.kernel.model import Kernel
from kwhy.kernel.source import Condition as SourceCondition
from kwhy.kernel.source import Statement

NEARBY = 6
LOOPS = frozenset({"for", "while", "do"})
_HEADS = frozenset({"if", "while", "do", "for", "switch", "?:", "macro"})


@dataclass(frozen=True, slots=True)
class Site:
    """Where a branch stands; without debug information only ``function`` and ``offset``."""

    address: int
    function: str
    inlined: tuple[str, ...]
    file: str | None
    line: int | None
    column: int | None
    offset: str
    condition: SourceCondition | None

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes two branches the same source condition."""
        if self.condition is not None:
            return self.file, self.condition.start, self.condition.text
        return (self.address,)


def locate(kernel: Kernel, address: int) -> Site:
    """The source condition of the branch at ``address``, innermost inlined function first."""
    symbol = kernel.symbols.at(address)
    name = symbol.name if symbol else f"{address:#x}"
    offset = f"{name}+{address - symbol.address:#x}" if symbol else f"{address:#x}"
    frames = kernel.frames(address)
    chosen = None
    condition = None
    inlined = tuple(f.function for f in frames[:-1])
    for depth, frame in enumerate(frames):
        parsed = kernel.parsed(frame.file) if frame.file else None
        found = parsed.condition(frame.line, frame.column) if parsed and frame.line else None
        if found is None:
            continue
        # A returned ``a && b`` is a predicate: the ``if`` that asks it is what decides.
        predicate = found.kind not in _HEADS
        if condition is None or (not predicate and condition.kind not in _HEADS):
            if condition is not None and predicate:
                continue
            chosen, condition = frame, found
            inlined = tuple(f.function for f in frames[depth:-1])
        if not predicate:
            break
    if chosen is None and frames:
        chosen = frames[0]
    return Site(
        address,
        chosen.function if chosen else name,
        inlined,
        chosen.file if chosen else None,
        condition.start if condition else (chosen.line if chosen else None),
        chosen.column if chosen else None,
        offset,
        condition,
    )


def following(node: Node, decision: Decision, count: int = 4) -> list[Node]:
    """The nodes right after a decision, as long as there is just one way."""
    out: list[Node] = []
    here = next((c for c, d in node.after if d is decision), None)
    while here is not None and len(out) < count:
        out.append(here)
        here = here.after[0][0] if len(here.after) == 1 else None
    return out


def instead(function: Function, node: Node, decision: Decision, count: int = 4) -> list[int]:
    """Addresses that the branch would have gone on to, as long as there is just one way."""
    segment = node.segment
    if segment.kind != "branch":
        return []
    start = segment.next if decision.taken else segment.target
    out: list[int] = []
    while start is not None and start in function.segments and len(out) < count:
        out.append(start)
        onward = function.segments[start].successors()
        start = onward[0] if len(onward) == 1 else None
    return out


DEFAULT = "default"
MAX_COMPARISONS = 16
"""Branches looked at behind one of a switch, which may be a tree of comparisons."""


def case_label(kernel: Kernel, site: Site, node: Node, decision: Decision) -> str | None:
    """The case that a branch of a switch went to: EPOLL_CTL_DEL, "default"; None if not known.

    Compilers make a switch a tree of comparisons, and share what cases have in common, so that
    the lines behind a branch may be of no case, or of another.
    """
    condition = site.condition
    if condition is None or condition.kind != "switch":
        return None
    if decision.kind == "branch" and decision.condition is not None:
        op, _, value, _ = oriented(decision.condition, decision.taken)
        if op == "ne":
            return DEFAULT
        if op == "eq" and isinstance(value, int):
            label = _label_by_lines(kernel, site, condition, node, decision)
            return number(value) if label in (None, DEFAULT) else label
    return _label_by_lines(kernel, site, condition, node, decision)


_MAY_ASK = re.compile(r"\?|&&|\|\||\w\(")


def case_makes(kernel: Kernel, site: Site, label: str, error: str) -> bool:
    """Whether going to a case is enough for an error: it makes it, and asks nothing behind that.

    A label that the source does not have (a bare number) stands for any of the switch's cases.
    """
    parsed = kernel.parsed(site.file) if site.file else None
    if parsed is None or site.condition is None:
        return False
    cases = parsed.cases(site.condition.start)
    makes = re.compile(rf"(?:\breturn|[^=!<>]=|\bERR_PTR\()\s*-{error}\b")
    for statements in [cases[label]] if label in cases else cases.values():
        made = next((n for n, each in enumerate(statements) if makes.search(each.text)), None)
        if made is not None and not any(_asks(each) for each in statements[made:]):
            return True
    return False


def _asks(statement: Statement) -> bool:
    return statement.kind in _HEADS or _MAY_ASK.search(statement.text) is not None


def _label_by_lines(
    kernel: Kernel, site: Site, condition: SourceCondition, node: Node, decision: Decision
) -> str | None:
    parsed = kernel.parsed(site.file) if site.file else None
    after = following(node, decision, MAX_COMPARISONS)
    for line in lines(kernel, site, (insn.address for n in after for insn in n.segment.insns)):
        if not condition.start <= line <= condition.statement_end:
            return DEFAULT if decision.kind == "branch" else None
        label = parsed.case_label(line, condition.start) if parsed else None
        if label is not None and line > condition.end:
            return label
    return None


def lines(kernel: Kernel, site: Site, addresses: Iterable[int]) -> Iterator[int]:
    """The lines of ``site``'s function that the addresses belong to."""
    for address in addresses:
        for frame in kernel.frames(address):
            if frame.file == site.file and frame.function == site.function and frame.line:
                yield frame.line


def led_to(kernel: Kernel, site: Site, truth: bool, case: str | None = None) -> Statement | None:
    """The statement that the condition's outcome, or the ``case`` of a switch, leads to."""
    condition = site.condition
    parsed = kernel.parsed(site.file) if site.file else None
    if condition is None or parsed is None:
        return None
    own = parsed.cases(condition.start).get(case) if case is not None else None
    if own:
        return own[0]
    line = condition.then_line if truth else condition.else_line
    if line is not None:
        return parsed.statement(line)
    end = condition.statement_end or condition.end
    function = parsed.function_at(condition.start)
    for below in range(end + 1, min(end + NEARBY, function.end if function else end + NEARBY)):
        found = parsed.statement(below)
        if found is not None and found.start == below:
            return found
    return None
