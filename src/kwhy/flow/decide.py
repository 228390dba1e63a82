"""Which branch decided a result: the last one on the way whose other side was still open.

Not every open branch is what the failure turned on. Passed by on the way back are

* *guard clauses* that did not apply: ``if (!x) return -ECHILD;`` in front of ``return -ENOTDIR;``
  chose which error it was to be, not that there was one;
* *dispatch*: ``switch (op)`` that went to a case of its own;
* the *common tail*: behind ``out:`` all ways have met, good and bad, and the error is in hand.
"""

from collections.abc import Callable
from typing import Any, Literal

from kwhy.flow.cfg import Function
from kwhy.flow.explore import Decision, Explorer, Node, entry_state, is_error
from kwhy.flow.outcome import Answers, Budget, Result, in_register, may_differ, may_succeed
from kwhy.flow.state import EMPTY, NO_FLAGS, Cells, State
from kwhy.flow.terms import Term, mask, sym

Passing = Literal["guard", "dispatch"]
Passed = Callable[[Function, Node, Decision, int], Passing | None]
"""Asked of a branch that was gone through, and of the value that was returned."""
Edge = tuple[Node, Decision]

MAX_STEPS = 20_000
"""Segments looked at to learn what holds at each place of a function, whatever the way there."""

MAX_HINTS = 4000
"""Segments gone through, as of ``Budget``, for findings that are guesses."""

MAX_APART = 8
"""States kept apart at one place for that, as a choice between two errors makes them."""


class Decider:
    """Finds deciding branches. ``passing`` says what the source makes of a branch, if it knows."""

    def __init__(
        self, passing: Passed | None = None
    ) -> None:
        self.passing = passing
        self.budget = Budget()
        self.hints = Budget(MAX_HINTS)
        self._open: dict[Any, bool] = {}
        self._answers: dict[Any, Answers] = {}
        self._settled: dict[int, dict[int, list[State]]] = {}

    def deciding(
        self,
        explorer: Explorer,
        want: int,
        size: int,
        nodes: list[Node],
        result: Result = in_register,
        budget: Budget | None = None,
    ) -> list[Edge]:
        """The deciding branches of all ways to ``nodes``, where ``want`` was the ``result``."""
        left = budget or self.budget
        same = frozenset(value for node in nodes if (value := result(node)) is not None)

        def passed(node: Node, decision: Decision, strictly: bool) -> bool:
            if not self._is_open(explorer, node, decision, want, size, same, result, left):
                return True
            kind = self.passing(explorer.function, node, decision, want) if self.passing else None
            if kind == "guard" and not self._may_succeed(explorer, node, decision, left):
                return True
            if not strictly:
                return False
            return kind == "dispatch" or self._in_tail(explorer, node, decision, want)

        # Where that passes by everything, the plain rule has the answer.
        return _last(nodes, passed, strictly=True) or _last(nodes, passed, strictly=False)

    def _is_open(
        self,
        explorer: Explorer,
        node: Node,
        decision: Decision,
        want: int,
        size: int,
        same: frozenset[Term],
        result: Result,
        budget: Budget,
    ) -> bool:
        key = (node, decision.address, decision.taken, decision.index, same)
        found = self._open.get(key)
        if found is None:
            answers = self._answers.setdefault((explorer, want, size, same, result), Answers())
            found = any(
                may_differ(
                    explorer, start, state, want & mask(size), size, same, result, budget, answers
                )
                for start, state in _other_ways(explorer, node, decision)
            )
            if budget.left > 0:
                self._open[key] = found
        return found

    def _may_succeed(
        self, explorer: Explorer, node: Node, decision: Decision, budget: Budget
    ) -> bool:
        answers = self._answers.setdefault(explorer, Answers())
        return any(
            may_succeed(explorer, start, state, budget, answers)
            for start, state in _other_ways(explorer, node, decision)
        )

    def _in_tail(self, explorer: Explorer, node: Node, decision: Decision, want: int) -> bool:
        """Whether the error was in hand at a branch that good runs come through as well."""
        ahead = next(child for child, after in node.after if after is decision)
        stack = explorer.arch.stack
        held = [slot for slot, value in _slots(ahead.state, stack) if _low(value) == _low(want)]
        if not held:
            return False
        settled = [
            dict(_slots(state, stack))
            for before in self._whatever_the_way(explorer).get(node.segment.start, [])
            for start, _, state, other, _ in explorer.step(
                Node(node.segment, 0, before.copy()), None
            )
            if other is not None
            and (start, other.taken, other.index)
            == (decision.target, decision.taken, decision.index)
        ]
        return bool(settled) and not any(
            all(_is_some_error(slots.get(slot)) for slots in settled) for slot in held
        )

    def _whatever_the_way(self, explorer: Explorer) -> dict[int, list[State]]:
        """For each segment's start the states that stand for all ways there, {} if unknown."""
        entry = explorer.function.entry
        if entry not in self._settled:
            self._settled[entry] = _settle(explorer)
        return self._settled[entry]


def _last(
    nodes: list[Node], passed: Callable[[Node, Decision, bool], bool], *, strictly: bool
) -> list[Edge]:
    """The first decision on each way back from ``nodes`` that is not passed by."""
    out: dict[Any, Edge] = {}
    done: set[int] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if id(node) in done:
            continue
        done.add(id(node))
        for prior, decision in node.before:
            if decision is None or passed(prior, decision, strictly):
                todo.append(prior)
            else:
                key = (decision.address, decision.taken, decision.index)
                out.setdefault(key, (prior, decision))
    return list(out.values())


def _other_ways(explorer: Explorer, node: Node, decision: Decision) -> list[tuple[int, State]]:
    """Where the branch could have gone instead."""
    return [
        (start, state)
        for start, _, state, other, _ in explorer.step(node, None, what_if=True)
        if other is not None
        and start is not None
        and (other.taken, other.index) != (decision.taken, decision.index)
    ]


# --- what holds at a place, whatever the way there -----------------------------------------------


def _slots(state: State, stack: str) -> list[tuple[Any, Term]]:
    """Registers and the frame's own stack, with what they hold."""
    own = state.memory.get(sym("init", state.frame, stack), EMPTY)
    return [*state.registers.items(), *((offset, value) for offset, (_, value) in own.items())]


def _low(value: Term | None) -> Term | None:
    return value & mask(4) if isinstance(value, int) else None


_SOME_ERROR = sym("lost", -1, ("an error",))


def _is_some_error(value: Term | None) -> bool:
    return value is _SOME_ERROR or (value is not None and is_error(value))


def _settle(explorer: Explorer) -> dict[int, list[State]]:
    function = explorer.function
    states = {function.entry: [entry_state(explorer.frame)]}
    todo = [(function.entry, states[function.entry][0])]
    for _ in range(MAX_STEPS):
        if not todo:
            return states
        at, state = todo.pop()
        for to, _, after, _, _ in explorer.step(Node(function.segments[at], 0, state.copy()), None):
            if to is None or to not in function.segments:
                continue
            live = function.live.get(to, frozenset()) | {explorer.arch.stack}
            after.registers = {r: v for r, v in after.registers.items() if r in live}
            after.facts, after.flags = {}, NO_FLAGS
            known = states.setdefault(to, [])
            if any(_same(other, after) for other in known):
                continue
            if len(known) < MAX_APART:
                known.append(after)
                todo.append((to, after))
            elif _join(known[-1], after, explorer.arch.stack):
                todo.append((to, known[-1]))
    return {}


def _same(known: State, new: State) -> bool:
    return known.registers == new.registers and known.memory == new.memory


def _join(known: State, new: State, stack: str) -> bool:
    """Keep in ``known`` what ``new`` has too; whether that lost something."""
    lost = False
    for name, value in known.registers.items():
        joined = _joined(value, new.registers.get(name), (known.frame, name))
        if joined != value:
            known.registers[name] = joined
            lost = True
    base = sym("init", known.frame, stack)
    mine, theirs = known.memory.get(base, EMPTY), new.memory.get(base, EMPTY)
    kept = Cells()
    for offset, (size, value) in mine.items():
        other = theirs.get(offset)
        if other is not None and other[0] == size:
            kept[offset] = (size, _joined(value, other[1], (known.frame, offset)))
    lost = lost or kept != mine
    known.memory = {base: kept} if kept else {}
    return lost


def _joined(value: Term, other: Term | None, place: Any) -> Term:
    if value == other:
        return value
    if other is not None and _is_some_error(value) and _is_some_error(other):
        return _SOME_ERROR
    return sym("lost", place[0], ("met", place[1]))
