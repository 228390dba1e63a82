"""The condition that a jump's source position belongs to, and which of its operands.

What GCC attaches to a conditional jump (c-family, fold-const.c, gimplify.c): to the jump of the
first operand of an ``if``'s chain of ``&&``/``||`` the place of the opening parenthesis, to each
further one the ``&&`` or ``||`` in front of it (shortcut_cond_expr).  But two neighbours without
side effects are first made one test (fold_truth_andor) and split into two jumps again much later:
both then have the place of the first.  A chain that is a value (returned, assigned) has one place
for all.  A comparison that is a statement of its own has its operator's place, a ``?:`` that of its
colon, and what comes out of a macro the place of the macro's name.

So a position alone seldom names the operand of a chain: ``candidates`` says which it may be, and
``refine`` uses that the jumps of one condition come in the order of its operands.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kwhy.kernel.parsed import ParsedFile, up

LIKELY = frozenset({"likely", "unlikely"})
KINDS = {
    "if_statement": "if",
    "while_statement": "while",
    "do_statement": "do",
    "for_statement": "for",
    "switch_statement": "switch",
    "conditional_expression": "?:",
}
STATEMENTS = frozenset({
    "if_statement", "while_statement", "do_statement", "for_statement", "switch_statement",
    "return_statement", "goto_statement", "break_statement", "continue_statement",
    "expression_statement", "declaration", "labeled_statement", "case_statement",
})  # fmt: skip
_TESTING_MACRO = re.compile(r"[A-Z]*_?(?:WARN|BUG)(?:_ON)?(?:_ONCE)?(?:_ON_\w+)?|\w*wait_event\w*")


@dataclass(frozen=True, slots=True)
class Atom:
    """An operand of && and ||: its text, the text without ``!``, and whether those were odd."""

    text: str
    core: str
    negated: bool
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Condition:
    """A controlling expression.

    ``kind``: "if", "while", "do", "for", "switch", "?:", "return", "expression" (a chain of && that
    is assigned or passed), "macro" (WARN_ON and the like).  ``text`` is the whole condition on one
    line, likely/unlikely stripped; ``parts`` its operands of && and ||, ``atoms`` their texts.
    ``candidates`` are the indices of those that the position may mean, the likeliest first.  With
    exactly one candidate the condition is ``certain``: ``atom`` is that operand with its ``!``,
    ``core`` without, ``negated`` whether there was an odd number of them.  Else ``atom`` and
    ``core`` are the whole text.  ``how`` the position was read: "only" (one operand), "inside" one,
    its "operator" in front, the "opening" parenthesis, "macro", "order" (by ``refine``).

    ``start``/``end`` are the condition's lines, ``line``/``column`` where ``atom`` begins,
    ``then_line``/``else_line`` the first statement of either branch (None: has none of its own),
    ``statement_end`` the last line of the whole statement.  ``function`` contains it by text.
    """

    kind: str
    text: str
    atom: str
    core: str
    negated: bool
    certain: bool
    atoms: tuple[str, ...]
    function: str
    start: int
    end: int
    line: int
    column: int
    then_line: int | None = None
    else_line: int | None = None
    statement_end: int = 0
    how: str = "only"
    parts: tuple[Atom, ...] = ()
    candidates: tuple[int, ...] = ()
    at: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition around a position; ``side`` says which of its branches: "then" or "else"."""

    condition: Condition
    side: str


def refine(jumps: Sequence[Condition]) -> list[Condition]:
    """The conditions of all jumps of one source condition in one inlined instance, told more.

    When there are as many jumps as operands, each tests one.  Their places in the text come in the
    operands' order, so a place that only one jump has names its operand; jumps that share a place
    (a merged pair, whose order the compiler may have changed) share as many candidates.
    """
    first = jumps[0] if jumps else None
    same = first is not None and all(
        (jump.text, jump.start, jump.kind) == (first.text, first.start, first.kind)
        for jump in jumps
    )
    if first is None or not same or len(first.parts) != len(jumps) or len(jumps) < 2:
        return list(jumps)
    out = list(jumps)
    part = 0
    for place in sorted({jump.at for jump in jumps}):
        group = [i for i, jump in enumerate(jumps) if jump.at == place]
        operands = tuple(range(part, part + len(group)))
        part += len(group)
        for index in group:
            if not set(operands) & set(jumps[index].candidates):
                return list(jumps)
            if len(operands) == 1 and not jumps[index].certain:
                out[index] = _chosen(jumps[index], operands[0], "order")
            elif len(operands) > 1:
                kept = tuple(i for i in operands if i in jumps[index].candidates)
                out[index] = replace(jumps[index], candidates=kept)
    return out


def _chosen(condition: Condition, index: int, how: str) -> Condition:
    part = condition.parts[index]
    return replace(
        condition,
        atom=part.text,
        core=part.core,
        negated=part.negated,
        certain=True,
        candidates=(index,),
        line=part.line,
        column=part.column,
        how=how,
    )


def find(file: ParsedFile, line: int, column: int) -> Condition | None:
    """The smallest controlling condition that a position belongs to, None in plain code."""
    at = (line - 1, max(column - 1, 0))
    chain = None
    for here in up(file.node(line, column)):
        if here.type in KINDS:
            test = condition_node(here)
            starts = column <= 0 and here.start_point[0] == line - 1
            if test is not None and (starts or _heads(here, test, at)):
                return _make(file, here, test, at, column)
        if is_chain(here) or _is_likely(file, here):
            chain = here
        if here.type in STATEMENTS and chain is not None:
            return _make(file, here, chain, at, column)
        if here.type == "call_expression" and _is_macro(file, here, at):
            return _macro(file, here, at)
        if here.type == "case_statement" and _in_label(here, at):
            switch = next((n for n in up(here) if n.type == "switch_statement"), None)
            test = condition_node(switch) if switch is not None else None
            return _make(file, switch, test, at, column) if test is not None else None
        if here.type in ("compound_statement", "function_definition"):
            return None
    return None


def guards(file: ParsedFile, line: int, column: int = 0) -> list[Guard]:
    """Conditions whose branches enclose a position, outermost first."""
    out: list[Guard] = []
    child = file.node(line, column)
    for here in up(child):
        if here.type in KINDS:
            test, side = condition_node(here), _side(here, child)
            if test is not None and side:
                out.append(Guard(_make(file, here, test, (line - 1, 0), 0), side))
        if here.type == "function_definition":
            break
        child = here
    return out[::-1]


def _side(node: Any, child: Any) -> str:
    for name, side in (("consequence", "then"), ("body", "then"), ("alternative", "else")):
        if node.child_by_field_name(name) == child:
            return side
    return ""


def statement_of(node: Any) -> Any:
    """The smallest statement around a node, None if there is none."""
    return next((n for n in up(node) if n.type in STATEMENTS), None)


def _code(node: Any) -> list[Any]:
    """Named children that are no comments."""
    return [c for c in node.named_children if c.type != "comment"]


def condition_node(node: Any) -> Any:
    """The controlling expression of a statement or ?:, without its parentheses."""
    found = node.child_by_field_name("condition")
    if found is not None and found.type == "parenthesized_expression":
        inner = _code(found)
        return inner[0] if len(inner) == 1 else found
    return found


def _heads(node: Any, test: Any, at: tuple[int, int]) -> bool:
    """Whether ``at`` lies in a condition or in front of it, not in a branch."""
    if tuple(test.start_point) <= at < tuple(test.end_point):
        return True
    if node.type == "conditional_expression":
        marks = [c for c in node.children if c.type in ("?", ":")]
        return any(tuple(c.start_point) <= at < tuple(c.end_point) for c in marks)
    if node.type == "do_statement":
        word = next((c for c in node.children if c.type == "while"), None)
        return word is not None and tuple(word.start_point) <= at <= tuple(node.end_point)
    if node.type == "for_statement":
        # Initialiser and step are plain code; the keyword and parenthesis are the test's.
        word = node.children[0]
        return tuple(word.start_point) <= at <= (word.end_point[0], word.end_point[1] + 1)
    body = node.child_by_field_name("consequence") or node.child_by_field_name("body")
    stop = tuple(body.start_point) if body is not None else tuple(node.end_point)
    return tuple(node.start_point) <= at < stop


def _in_label(node: Any, at: tuple[int, int]) -> bool:
    colon = next((c for c in node.children if c.type == ":"), None)
    return colon is not None and at <= tuple(colon.end_point)


def _operator(node: Any) -> str:
    found = node.child_by_field_name("operator")
    return found.type if found is not None else ""


def is_chain(node: Any) -> bool:
    """Whether a node is ``a && b`` or ``a || b``."""
    return node.type == "binary_expression" and _operator(node) in ("&&", "||")


def _is_likely(file: ParsedFile, node: Any) -> bool:
    if node.type != "call_expression":
        return False
    return file.raw(node.child_by_field_name("function")) in LIKELY


def _bare(file: ParsedFile, node: Any) -> Any:
    """Without parentheses and likely()/unlikely()."""
    while True:
        if node.type == "parenthesized_expression":
            inner = _code(node)
        elif _is_likely(file, node):
            arguments = node.child_by_field_name("arguments")
            inner = _code(arguments) if arguments is not None else []
        else:
            return node
        if len(inner) != 1:
            return node
        node = inner[0]


def _leaves(file: ParsedFile, node: Any) -> list[Any]:
    """Operands of && and ||, in the order they are evaluated."""
    bare = _bare(file, node)
    if is_chain(bare):
        left, right = bare.child_by_field_name("left"), bare.child_by_field_name("right")
        return _leaves(file, left) + _leaves(file, right)
    if bare.type == "unary_expression" and _operator(bare) == "!":
        inner = bare.child_by_field_name("argument")
        if inner is not None and is_chain(_bare(file, inner)):
            return _leaves(file, inner)
    return [node]


def _part(file: ParsedFile, leaf: Any) -> Atom:
    negated = False
    node = _bare(file, leaf)
    place = leaf.start_point
    while node.type == "unary_expression" and _operator(node) == "!":
        argument = node.child_by_field_name("argument")
        if argument is None:
            break
        negated, node = not negated, _bare(file, argument)
    text = file.one_line(_bare(file, leaf))
    return Atom(text, file.one_line(node), negated, place[0] + 1, place[1] + 1)


def _candidates(
    file: ParsedFile, test: Any, leaves: list[Any], at: tuple[int, int], column: int, kind: str
) -> tuple[tuple[int, ...], str]:
    """Indices of the leaves that a position may mean, and how it was read."""
    everyone = tuple(range(len(leaves)))
    if len(leaves) == 1:
        return everyone, "only"
    if column <= 0:
        return everyone, "macro"
    for index, leaf in enumerate(leaves):
        if tuple(leaf.start_point) <= at < tuple(leaf.end_point):
            return (index,), "inside"
    bare = _bare(file, test)
    if at < tuple(bare.start_point):
        if tuple(bare.start_point) != tuple(test.start_point):
            return everyone, "macro"  # likely() around the whole swallows every operand's place
        return everyone[:2], "opening"
    if file.node(at[0] + 1, at[1] + 1).type in ("&&", "||"):
        if kind in ("return", "expression", "?:"):
            return everyone, "operator"
        after = next((i for i, leaf in enumerate(leaves) if tuple(leaf.start_point) > at), None)
        if after is not None:
            return tuple(i for i in (after, after - 1, after + 1) if i in everyone), "operator"
    return everyone, "macro"


def _make(file: ParsedFile, node: Any, test: Any, at: tuple[int, int], column: int) -> Condition:
    text = file.one_line(_bare(file, test))
    kind = KINDS.get(node.type, node.type.removesuffix("_statement"))
    if kind not in (*KINDS.values(), "return"):
        kind = "expression"
    leaves = _leaves(file, test)
    candidates, how = _candidates(file, test, leaves, at, column, kind)
    loop = file.prepared.loops.get(node.start_byte)
    if loop is not None:
        text = f"{loop}{file.one_line(node.child_by_field_name('condition'))}"
        kind, leaves, candidates, how = "for", [], (), "macro"
    then, otherwise = _branches(node)
    found = Condition(
        kind=kind,
        text=text,
        atom=text,
        core=text,
        negated=False,
        certain=False,
        atoms=(),
        function="",
        start=test.start_point[0] + 1,
        end=test.end_point[0] + 1,
        line=test.start_point[0] + 1,
        column=test.start_point[1] + 1,
        then_line=then,
        else_line=otherwise,
        statement_end=node.end_point[0] + 1,
        how=how,
        at=(at[0] + 1, at[1] + 1),
    )
    return _with_parts(file, found, leaves, candidates)


def _with_parts(
    file: ParsedFile, found: Condition, leaves: list[Any], candidates: tuple[int, ...]
) -> Condition:
    parts = tuple(_part(file, leaf) for leaf in leaves)
    texts = tuple(part.text for part in parts)
    found = replace(found, parts=parts, atoms=texts, candidates=candidates)
    return _chosen(found, candidates[0], found.how) if len(candidates) == 1 else found


def _is_macro(file: ParsedFile, node: Any, at: tuple[int, int]) -> bool:
    """Whether ``at`` is the name of a macro that tests something by itself."""
    name = node.child_by_field_name("function")
    inside = tuple(name.start_point) <= at < tuple(name.end_point)
    return inside and bool(_TESTING_MACRO.fullmatch(file.raw(name)))


def _macro(file: ParsedFile, node: Any, at: tuple[int, int]) -> Condition:
    """WARN_ON(x), wait_event(q, x): the use is the text, the operands are its tested argument's."""
    name = file.raw(node.child_by_field_name("function"))
    arguments = _code(node.child_by_field_name("arguments"))
    index = 1 if "wait_event" in name else 0
    leaves = _leaves(file, arguments[index]) if index < len(arguments) else []
    statement = statement_of(node) or node
    text = file.one_line(node)
    found = Condition(
        kind="macro",
        text=text,
        atom=text,
        core=text,
        negated=False,
        certain=False,
        atoms=(),
        function="",
        start=node.start_point[0] + 1,
        end=node.end_point[0] + 1,
        line=node.start_point[0] + 1,
        column=node.start_point[1] + 1,
        statement_end=statement.end_point[0] + 1,
        how="macro",
        at=(at[0] + 1, at[1] + 1),
    )
    # Never certain: the macro may test more than its argument (WARN_ON_ONCE: whether it was said).
    everyone = tuple(range(len(leaves)))
    parts = tuple(_part(file, leaf) for leaf in leaves)
    return replace(
        found, parts=parts, atoms=tuple(part.text for part in parts), candidates=everyone
    )


def _branches(node: Any) -> tuple[int | None, int | None]:
    """Lines of the first statements of the true and the false branch."""
    consequence = node.child_by_field_name("consequence")
    alternative = node.child_by_field_name("alternative")
    if node.type == "conditional_expression":
        sides = (consequence, alternative)
        lines = [None if side is None else side.start_point[0] + 1 for side in sides]
        return lines[0], lines[1]
    if node.type == "if_statement":
        inner = _code(alternative) if alternative is not None else []
        return _first_line(consequence), _first_line(inner[0] if inner else None)
    if node.type in KINDS and node.type != "switch_statement":
        return _first_line(node.child_by_field_name("body")), None
    return None, None


def _first_line(node: Any) -> int | None:
    """Line of the first statement in a branch (a block's first, not its brace)."""
    if node is None:
        return None
    if node.type == "compound_statement" and (inner := _code(node)):
        return _first_line(inner[0])
    return int(node.start_point[0]) + 1
