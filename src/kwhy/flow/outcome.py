"""Whether the outcome of a frame is still open at some point of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kwhy.flow.explore import Explorer, Node
from kwhy.flow.state import State
from kwhy.flow.terms import Term, assume, mask, parts

MAX_STEPS, MAX_STATES = 1000, 8
"""Segments gone through from one point, and states told apart at one place, before it is enough."""


@dataclass(slots=True)
class Budget:
    """Segments that may still be gone through for one failure: what is beyond is not looked at."""

    left: int = 100_000


@dataclass(slots=True)
class Answers:
    """What is known of one question, by state: ``asked`` of it, ``shown`` of each it came through.

    What was found open is so for all states on the way there. What was gone through whole and is
    not open is so for all states that were met, unless a return there was not judged.
    """

    asked: dict[Any, bool] = field(default_factory=dict)
    shown: dict[Any, bool] = field(default_factory=dict)


Result = Callable[[Node], Term | None]


def in_register(node: Node) -> Term | None:
    """What is returned at a node, in the result register."""
    return node.result


def may_differ(
    explorer: Explorer,
    start: int,
    state: State,
    want: int,
    size: int,
    same: frozenset[Term] = frozenset(),
    result: Result = in_register,
    budget: Budget | None = None,
    answers: Answers | None = None,
) -> bool:
    """Whether some continuation from here, unobserved, can return other than ``want``.

    Other arguments may come with it, but not other values of the terms in ``same``, which are
    what was returned. Only a path that shows it counts: no answer within bounds is no.
    ``result`` is where a result is found at a return; None there is another one than ``want``.
    ``answers`` are those to the same question, from other states.
    """

    def differs(node: Node) -> bool | None:
        assert node.leaving is not None
        term = result(node)
        if term is None:
            return True
        if term in same:
            return False
        if _joined(term):
            return None
        return assume(node.leaving.facts, "ne", term, want, size) is not None

    return _may_return(explorer, start, state, differs, budget or Budget(), answers or Answers())


def may_succeed(
    explorer: Explorer,
    start: int,
    state: State,
    budget: Budget | None = None,
    answers: Answers | None = None,
) -> bool:
    """Whether some continuation from here, unobserved, can return what is no error number."""

    def succeeds(node: Node) -> bool | None:
        assert node.leaving is not None and node.result is not None
        term, facts = node.result, node.leaving.facts
        if _joined(term):
            return None
        if assume(facts, "ult", term, -4095 & mask(4), 4) is None:
            return False
        pointer = isinstance(term, int) and term > mask(4)
        return pointer or assume(facts, "sge", term, 0, 4) is not None

    return _may_return(explorer, start, state, succeeds, budget or Budget(), answers or Answers())


def _may_return(
    explorer: Explorer,
    start: int,
    state: State,
    wanted: Callable[[Node], bool | None],
    budget: Budget,
    answers: Answers,
) -> bool:
    """``wanted`` tells whether it is this that a node returns; None: that cannot be told."""
    first = Node(explorer.function.segments[start], 0, state)
    explorer.forget_dead(first)
    asked = _key(explorer, first)
    if asked in answers.asked:
        return answers.asked[asked]
    todo: list[tuple[Node, Any]] = [(first, None)]
    came: dict[Any, Any] = {}
    counts: dict[int, int] = {}
    joined: dict[Any, State] = {}
    judged = True
    while todo:
        node, prior = todo.pop()
        key = _key(explorer, node)
        if key in came:
            continue
        came[key] = prior
        found = answers.shown.get(key)
        if found is False:
            continue
        if found is None:
            budget.left -= 1
            if budget.left <= 0:
                return False
            if len(came) > MAX_STEPS:
                judged = False
                break
            for to, _, after, _, _ in explorer.step(node, None, what_if=True):
                if to is None or to not in explorer.function.segments:
                    continue
                child = Node(explorer.function.segments[to], 0, after)
                explorer.forget_dead(child)
                counts[to] = counts.get(to, 0) + 1
                if counts[to] > MAX_STATES:
                    like = (to, explorer.errors(after))
                    if like in joined:
                        explorer.widen(after, joined[like], like)
                    joined[like] = after
                todo.append((child, key))
            if node.result is not None:
                found = wanted(node)
                judged = judged and found is not None
        if found:
            while key is not None:
                answers.shown[key] = True
                key = came[key]
            answers.asked[asked] = True
            return True
    if judged:
        answers.shown.update(dict.fromkeys(came, False))
    answers.asked[asked] = False
    return False


def _key(explorer: Explorer, node: Node) -> Any:
    return node.segment.start, node.state.key(explorer.function.live[node.segment.start])


def _joined(term: Term) -> bool:
    """Whether a term was lost where states were joined: it says nothing of any one path."""
    return any(
        part[0] == "lost" and isinstance(part[2], tuple) and part[2][0] == "loop"
        for part in parts(term)
    )
