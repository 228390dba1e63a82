"""Whether a source condition was true when its branch in the machine code went as it did."""

import re

from kwhy.diagnose.sites import LOOPS, Site, led_to, lines
from kwhy.diagnose.words import oriented
from kwhy.flow.explore import Decision
from kwhy.kernel.model import Kernel
from kwhy.kernel.source import Condition as SourceCondition

_COMPARISON = re.compile(r"(?<![-<>=!])(==|!=|<=|>=|<|>)(?![<>=])")


def held(
    kernel: Kernel,
    site: Site,
    decision: Decision,
    after: list[int],
    other_way: list[int],
    error: str | None = None,
    left: bool | None = None,
) -> bool:
    """Whether the source condition was true when the branch went as it did; if unsure, True.

    See :func:`truth`.
    """
    if site.condition is None:
        return decision.taken
    found = truth(kernel, site, decision, after, other_way, error, left)
    return True if found is None else found


def truth(
    kernel: Kernel,
    site: Site,
    decision: Decision,
    after: list[int],
    other_way: list[int],
    error: str | None = None,
    left: bool | None = None,
    *,
    same: bool = True,
    guess: bool = True,
) -> bool | None:
    """Whether the source condition was true when the branch went so; None when it is not clear.

    ``after`` are addresses that ran next, ``other_way`` those that would have had it gone the other
    way. Whether it ``left`` a loop tells of that loop's condition. Else the comparison itself tells
    where source and machine compare alike (never, unless ``same``); else those lines do; else the
    statement that makes ``error`` (ENOENT), to which the branch led. Without ``guess`` there is no
    answer where both ways lead to the same lines, or where a macro or inlined predicate compares
    something and nothing but that tells.
    """
    condition = site.condition
    if condition is None:
        return None
    if left is not None and condition.kind in LOOPS:
        return not left
    same = same and not _is_judgement(kernel, site, condition)
    polarity = _by_polarity(condition, decision) if same else None
    inside = _inside_the_predicate(kernel, condition, decision)
    if inside:
        found = _by_predicate(kernel, condition, decision, after, other_way)
    else:
        found = polarity
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
        condition.start <= line <= condition.end for line in lines(kernel, site, other_way)
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


_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def _is_judgement(kernel: Kernel, site: Site, condition: SourceCondition) -> bool:
    """Whether what is asked is a variable that was given the truth of something else.

    After ``timed_out = !schedule_hrtimeout(...)`` the machine compares what was returned.
    """
    name = asked(condition)
    parsed = kernel.parsed(site.file) if site.file else None
    function = parsed.function_named(site.function) if parsed else None
    if parsed is None or function is None or not _IDENTIFIER.fullmatch(name):
        return False
    text = "\n".join(parsed.lines[function.start - 1 : function.end])
    for given in re.findall(rf"(?<![\w.>]){name}\s*=(?!=)\s*([^;]*);", text):
        core, flipped = _unwrapped(given.strip())
        if flipped or _COMPARISON.search(_outside(core)):
            return True
    return False


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
    for line in lines(kernel, site, addresses):
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


def _by_predicate(
    kernel: Kernel,
    condition: SourceCondition,
    decision: Decision,
    after: list[int],
    other_way: list[int],
) -> bool | None:
    """Of an inlined predicate that returns what the machine compares, or a chain that this cuts
    short: ``return sk->sk_ll_usec && !signal_pending(current);`` is false by the first alone."""
    frame = kernel.frames(decision.address)[0]
    parsed = kernel.parsed(frame.file) if frame.file else None
    inner = parsed.condition(frame.line, frame.column) if parsed and frame.line else None
    core, flipped = _unwrapped(condition.core)
    called = _CALL.match(core)
    if inner is None or inner.kind != "return" or called is None or called[1] != frame.function:
        return None
    operators = {op for op in ("&&", "||") if op in inner.text}
    part = _by_polarity(inner, decision)
    if part is None and len(operators) == 1:
        # Where it comes to an operand further on only the other way, the chain is cut short.
        on = [_calls_inside(kernel, frame.function, inner.text, way) for way in (after, other_way)]
        part = None if on != [False, True] else operators == {"||"}
    if part is None or (operators and operators != ({"||"} if part else {"&&"})):
        return None
    return part != (condition.negated != flipped)


def _calls_inside(kernel: Kernel, function: str, text: str, addresses: list[int]) -> bool:
    """Whether code at these addresses is of a function inlined in the predicate that ``text``
    names."""
    for address in addresses:
        names = [frame.function for frame in kernel.frames(address)]
        at = names.index(function) if function in names else 0
        if at and f"{names[at - 1]}(" in text:
            return True
    return False


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
    for line in lines(kernel, site, addresses):
        if condition.start <= line <= condition.end:
            continue
        if condition.else_line is not None and condition.else_line <= line <= end:
            return False
        if condition.then_line is not None and condition.then_line <= line <= end:
            return True
    return None
