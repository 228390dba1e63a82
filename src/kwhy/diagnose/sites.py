"""A machine branch in the source: which condition it belongs to, and whether that held."""

import re
from dataclasses import dataclass

from kwhy.diagnose.words import oriented
from kwhy.flow.cfg import Function
from kwhy.flow.explore import Decision, Node
from kwhy.kernel.model import Kernel
from kwhy.kernel.source import Condition as SourceCondition
from kwhy.kernel.source import Statement

NEARBY = 6
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


_COMPARISON = re.compile(r"(?<![-<>=!])(==|!=|<=|>=|<|>)(?![<>=])")


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


def held(
    kernel: Kernel, site: Site, decision: Decision, after: list[int], other_way: list[int]
) -> bool:
    """Whether the source condition was true when the branch went as it did; if unsure, True.

    See :func:`truth`.
    """
    if site.condition is None:
        return decision.taken
    found = truth(kernel, site, decision, after, other_way)
    return True if found is None else found


def truth(
    kernel: Kernel,
    site: Site,
    decision: Decision,
    after: list[int],
    other_way: list[int],
    *,
    same: bool = True,
) -> bool | None:
    """Whether the source condition was true when the branch went so; None when it is not clear.

    ``after`` are addresses that ran next, ``other_way`` those that would have had it gone the other
    way. The comparison itself tells where source and machine compare alike (never, unless
    ``same``); else those lines do.
    """
    condition = site.condition
    if condition is None:
        return None
    found = _by_polarity(condition, decision) if same else None
    if found is None:
        found = _by_lines(kernel, site, condition, after)
    if found is None:
        other = _by_lines(kernel, site, condition, other_way)
        found = None if other is None else not other
    return found


# A macro such as RB_WARN_ON(buffer, !head): what the machine compares is negated inside.
_NEGATING = re.compile(r"[A-Z][A-Z0-9_]*\(.*!")
_WRAPPED = re.compile(r"(?:data_race|READ_ONCE|likely|unlikely|WARN_ON(?:_ONCE)?|)\((.*)\)$")


def _unwrapped(text: str) -> tuple[str, bool]:
    """``text`` without what does not change its truth, and whether an odd number of ``!`` went."""
    flipped = False
    while True:
        found = _WRAPPED.match(text)
        if found is not None and _balanced(found[1]):
            text = found[1].strip()
        elif text.startswith("!") and not text.startswith("!=") and not _COMPARISON.search(text):
            text, flipped = text[1:].strip(), not flipped
        else:
            return text, flipped


def _by_polarity(condition: SourceCondition, decision: Decision) -> bool | None:
    single = "&&" not in condition.text and "||" not in condition.text
    if decision.condition is None or not (condition.certain or single):
        return None
    op, _, b, _ = oriented(decision.condition, decision.taken)
    core = condition.core if condition.certain else condition.text
    negated = condition.negated if condition.certain else False
    core, flipped = _unwrapped(core)
    negated = negated != flipped
    if re.match(r"IS_ERR(_VALUE)?\(", core):
        truth = {"ugt": True, "uge": True, "ult": False, "ule": False}.get(op)
    elif "?" in core or "&&" in core or "||" in core or _NEGATING.match(core):
        return None
    else:
        found = _COMPARISON.search(_outside(core))
        if found is None:
            truth = {"eq": False, "ne": True}.get(op) if b == 0 else None
        elif found[1] in ("==", "!="):
            equal = {"eq": True, "ne": False}.get(op)
            truth = None if equal is None else equal == (found[1] == "==")
        elif isinstance(b, int) and op not in ("eq", "ne"):
            truth = op[1] == ("l" if found[1][0] == "<" else "g")
        else:
            truth = None
    if truth is None:
        return None
    return truth != negated


def _balanced(text: str) -> bool:
    depth = 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if depth < 0:
            return False
    return depth == 0


def _outside(text: str) -> str:
    """``text`` with everything in brackets blanked."""
    depth = 0
    out = []
    for char in text:
        if char in "([":
            depth += 1
        out.append(char if not depth else " ")
        if char in ")]":
            depth -= 1
    return "".join(out).replace("->", "  ")


def _by_lines(
    kernel: Kernel, site: Site, condition: SourceCondition, addresses: list[int]
) -> bool | None:
    end = condition.statement_end or condition.end
    for address in addresses:
        for frame in kernel.frames(address):
            if frame.file != site.file or frame.function != site.function or not frame.line:
                continue
            line = frame.line
            if condition.start <= line <= condition.end:
                continue
            if condition.else_line is not None and condition.else_line <= line <= end:
                return False
            if condition.then_line is not None and condition.then_line <= line <= end:
                return True
    return None


def led_to(kernel: Kernel, site: Site, truth: bool) -> Statement | None:
    """The statement that the condition's outcome leads to."""
    condition = site.condition
    parsed = kernel.parsed(site.file) if site.file else None
    if condition is None or parsed is None:
        return None
    line = condition.then_line if truth else condition.else_line
    if line is not None:
        return parsed.statement(line)
    end = condition.statement_end or condition.end
    function = parsed.function_at(condition.start)
    for number in range(end + 1, min(end + NEARBY, function.end if function else end + NEARBY)):
        found = parsed.statement(number)
        if found is not None and found.start == number:
            return found
    return None
