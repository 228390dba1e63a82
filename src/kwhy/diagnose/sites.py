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
    kernel: Kernel,
    site: Site,
    decision: Decision,
    after: list[int],
    other_way: list[int],
    error: str | None = None,
) -> bool:
    """Whether the source condition was true when the branch went as it did; if unsure, True.

    See :func:`truth`.
    """
    if site.condition is None:
        return decision.taken
    found = truth(kernel, site, decision, after, other_way, error)
    return True if found is None else found


def truth(
    kernel: Kernel,
    site: Site,
    decision: Decision,
    after: list[int],
    other_way: list[int],
    error: str | None = None,
    *,
    same: bool = True,
    guess: bool = True,
) -> bool | None:
    """Whether the source condition was true when the branch went so; None when it is not clear.

    ``after`` are addresses that ran next, ``other_way`` those that would have had it gone the other
    way. The comparison itself tells where source and machine compare alike (never, unless
    ``same``); else those lines do; else the statement that makes ``error`` (ENOENT), to which the
    branch led. Without ``guess`` there is no answer where both ways lead to the same lines, or
    where a macro or inlined predicate compares something and nothing but that tells.
    """
    condition = site.condition
    if condition is None:
        return None
    polarity = _by_polarity(condition, decision) if same else None
    inside = _inside_the_predicate(kernel, condition, decision)
    found = None if inside else polarity
    if found is None:
        found = _by_lines(kernel, site, condition, after)
        other = _by_lines(kernel, site, condition, other_way)
        if found is None:
            found = None if other is None else not other
        elif found == other and not guess:  # both ways lead there, as in a loop
            return None
    if found is None:
        found = _by_chain(kernel, site, condition, other_way)
    if found is None and error is not None:
        found = _by_error(kernel, site, condition, error)
    if found is None and _skips(kernel, site, condition, after):
        found = False
    if found is None and _skips(kernel, site, condition, other_way):
        found = True
    if found is None and (guess or not inside):
        found = polarity
    return found


def _by_chain(
    kernel: Kernel, site: Site, condition: SourceCondition, other_way: list[int]
) -> bool | None:
    """Cutting a chain short settles it: ``a && b`` is false without ``b``, ``a || b`` true."""
    operators = {op for op in ("&&", "||") if op in condition.text}
    again = any(
        condition.start <= line <= condition.end for line in _lines(kernel, site, other_way)
    )
    return operators == {"||"} if again and len(operators) == 1 else None


def _by_error(kernel: Kernel, site: Site, condition: SourceCondition, error: str) -> bool | None:
    parsed = kernel.parsed(site.file) if site.file else None
    sides = []
    for line in (condition.then_line, condition.else_line):
        statement = parsed.statement(line) if parsed and line else None
        sides.append(
            statement is not None and re.search(rf"-{error}\b", statement.text) is not None
        )
    return sides[0] if sides[0] != sides[1] else None


_LEAVES = re.compile(r"(?:return|goto|break|continue)\b")


def _skips(
    kernel: Kernel, site: Site, condition: SourceCondition, addresses: list[int]
) -> bool:
    """Whether a way goes on right behind an ``if`` whose own statement leaves for elsewhere."""
    parsed = kernel.parsed(site.file) if site.file else None
    if parsed is None or condition.then_line is None or condition.else_line is not None:
        return False
    leaving = parsed.statement(condition.then_line)
    behind = led_to(kernel, site, False)
    if leaving is None or behind is None or not _LEAVES.match(leaving.text):
        return False
    for line in _lines(kernel, site, addresses):
        if not condition.start <= line <= condition.end:
            return line == behind.start
    return False


_CALL = re.compile(r"(\w+)\(")


def _inside_the_predicate(kernel: Kernel, condition: SourceCondition, decision: Decision) -> bool:
    """Whether the machine compares what a macro or inlined predicate does, not what it returns.

    ``d_flags_negative(flags)`` holds when the tested bits are zero, ``fd_empty(f)`` when ``f`` is.
    """
    core, _ = _unwrapped(condition.core)
    called = _CALL.match(core)
    if decision.condition is None or called is None or core.startswith("IS_ERR"):
        return False
    term = decision.condition[1]
    while isinstance(term, tuple) and term[0] in ("low", "sext"):
        term = term[2]
    result = isinstance(term, tuple) and term[0] == "ret"
    return not (result and kernel.symbols.vmlinux.variants(called[1]))


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


def asked(condition: SourceCondition) -> str:
    """What a condition asks, without negation, hints and error tests: ``sock`` of ``!sock``."""
    core, _ = _unwrapped(condition.core)
    found = re.fullmatch(r"IS_ERR(?:_OR_NULL|_VALUE)?\((.*)\)", core)
    return found[1].strip() if found else core


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
    for line in _lines(kernel, site, addresses):
        if condition.start <= line <= condition.end:
            continue
        if condition.else_line is not None and condition.else_line <= line <= end:
            return False
        if condition.then_line is not None and condition.then_line <= line <= end:
            return True
    return None


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
    for line in _lines(kernel, site, (insn.address for n in after for insn in n.segment.insns)):
        if not condition.start <= line <= condition.statement_end:
            return DEFAULT if decision.kind == "branch" else None
        label = parsed.case_label(line, condition.start) if parsed else None
        if label is not None and line > condition.end:
            return label
    return None


def _lines(kernel: Kernel, site: Site, addresses: Iterable[int]) -> Iterator[int]:
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
