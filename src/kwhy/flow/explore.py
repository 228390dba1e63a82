"""The paths of one function call that fit what was observed of it.

The observation is the ordered list of what the call did: functions it called (each with the exact
call site) and probes it hit. Exploration walks the function's segments with a symbolic state,
consuming the observation; what disagrees is dropped. The result is a graph, not a list of paths:
states that cannot be told apart any more are one node.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kwhy.errors import FATAL
from kwhy.flow.cfg import NORETURN, Code, Function, Segment
from kwhy.flow.state import (
    NO_FLAGS,
    Cells,
    Condition,
    State,
    apply,
    assuming,
    decide,
    evaluate,
    forget_memory,
    keep,
    split,
)
from kwhy.flow.terms import (
    Facts,
    Intervals,
    Term,
    assume,
    by_argument,
    is_stack,
    low,
    parts,
    sym,
)

MAX_NODES = 8000
MIN_STATES, MAX_STATES = 2, 48


@dataclass(slots=True)
class Callee:
    """A call that was observed. ``site`` is the return address in the caller, None if unknown."""

    function: int
    site: int | None
    implicit: bool = False
    tag: Any = None


@dataclass(slots=True)
class Hit:
    """A probe that was hit: registers, and flags, just before the instruction at ``address``."""

    address: int
    values: dict[str, int]


Observation = Sequence[Callee | Hit]


@dataclass(frozen=True, slots=True)
class Decision:
    """One branch as it went: at ``address``, ``taken``; a switch's ``index``; what was compared."""

    address: int
    kind: str
    taken: bool
    condition: Condition | None
    target: int
    index: int | None = None


@dataclass(slots=True, eq=False)
class Node:
    """A segment entered in some state, ``seen`` observations consumed."""

    segment: Segment
    seen: int
    state: State
    before: list[tuple["Node", Decision | None]] = field(default_factory=list)
    after: list[tuple["Node", Decision | None]] = field(default_factory=list)
    leaving: State | None = None
    result: Term | None = None


@dataclass(slots=True)
class Exploration:
    """All that fits: entry node, the nodes where the call returned, and whether it was complete."""

    function: Function
    root: Node
    returns: list[Node]
    nodes: int
    complete: bool
    calls: dict[Any, list[Node]]


class Explorer:
    """Walks one frame. ``armed`` are the probed addresses: none of them runs without a hit.

    ``result_facts`` may know more of what the k-th observed callee returned, ``quiet`` whether an
    indirect call (by its address) goes to what no tracer sees, ``spent`` whether to give up here.
    ``most`` is how many nodes there may be; None: more for a larger function.
    """

    def __init__(
        self,
        code: Code,
        frame: int,
        function: Function,
        observed: Observation,
        *,
        relaxed: bool = False,
        traps: bool = False,
        result_facts: Callable[[int], dict[int, Intervals]] | None = None,
        arguments: Callable[[int], int | None] | None = None,
        armed: frozenset[int] = frozenset(),
        quiet: Callable[[int], bool] | None = None,
        spent: Callable[[], bool] = lambda: False,
        most: int | None = None,
    ) -> None:
        self.code = code
        self.arch = code.arch
        self.frame = frame
        self.function = function
        self.observed = observed
        self.relaxed = relaxed
        self.traps = traps
        self.result_facts = result_facts
        self.arguments = arguments
        self.probed = armed
        self.quiet = quiet
        self.spent = spent
        self.most = most

    # --- which segments can be on a path at all -------------------------------------------

    def _consume(self, segment: Segment, seen: int) -> int | None:
        """How many observations are consumed after a call or tail segment; None if impossible."""
        expected = self.observed[seen] if seen < len(self.observed) else None
        target = self.code.resolve(segment.target) if segment.target is not None else None
        if isinstance(expected, Callee):
            if segment.kind == "call" and expected.site == segment.last.end:
                return seen + 1
            if expected.site is None or segment.kind == "tail":
                if target == expected.function:
                    return seen + 1
                if target is None and (segment.kind == "tail" or expected.implicit):
                    return seen + 1
                if (
                    expected.implicit
                    and target is not None
                    and not self.code.traceable(target)
                    and self._through(target, expected.function)
                ):
                    return seen + 1
        if target is None:
            quiet = self.quiet is not None and self.quiet(segment.last.address)
            return seen if self.relaxed or quiet else None
        if self.code.name(target) in NORETURN or self.code.traceable(target):
            return None
        return seen

    def _through(self, target: int, function: int) -> bool:
        try:
            return function in self.code.function(target).callees
        except FATAL:
            raise
        except Exception:
            return False

    def _probe(self, segment: Segment, seen: int) -> tuple[int, Hit | None] | None:
        if segment.last.address not in self.probed:
            return seen, None
        expected = self.observed[seen] if seen < len(self.observed) else None
        if isinstance(expected, Hit) and expected.address == segment.last.address:
            return seen + 1, expected
        return None

    def _edges(self, segment: Segment, seen: int) -> list[tuple[int, int]]:
        """Where a segment can lead, with the observations consumed, regardless of values."""
        probe = self._probe(segment, seen)
        if probe is None:
            return []
        seen, hit = probe
        if segment.kind == "call":
            after = self._consume(segment, seen)
            return [(segment.next, after)] if after is not None and segment.next is not None else []
        if segment.kind == "trap" and not self.traps:
            return []
        if segment.kind == "branch" and hit is not None and "flags" in hit.values:
            holds = self.arch.condition_holds(segment.last.condition, hit.values["flags"])
            if holds is not None:
                to = segment.target if holds else segment.next
                return [(to, seen)] if to is not None else []
        return [(to, seen) for to in segment.successors()]

    def _ends(self, segment: Segment, seen: int) -> bool:
        if segment.kind == "return":
            return seen == len(self.observed)
        if segment.kind == "tail":
            probe = self._probe(segment, seen)
            return probe is not None and self._consume(segment, probe[0]) == len(self.observed)
        return False

    def _feasible(self) -> set[tuple[int, int]]:
        """The (segment, seen) pairs on some way from entry to a return that consumes everything."""
        start = (self.function.entry, 0)
        forward: dict[tuple[int, int], list[tuple[int, int]]] = {start: []}
        back: dict[tuple[int, int], list[tuple[int, int]]] = {}
        todo = [start]
        ends = []
        while todo:
            here = todo.pop()
            segment = self.function.segments.get(here[0])
            if segment is None:
                continue
            if self._ends(segment, here[1]):
                ends.append(here)
            for there in self._edges(segment, here[1]):
                back.setdefault(there, []).append(here)
                if there not in forward:
                    forward[there] = []
                    todo.append(there)
        good = set(ends)
        todo = list(ends)
        while todo:
            for prior in back.get(todo.pop(), []):
                if prior not in good:
                    good.add(prior)
                    todo.append(prior)
        return good

    # --- the walk -------------------------------------------------------------------------

    def run(self, entry: State) -> Exploration:
        """Everything that fits the observation, from the given entry state."""
        good = self._feasible()
        first = self.function.segments.get(self.function.entry)
        if first is None or (first.start, 0) not in good:
            hollow = Node(first or Segment(0, [], "stop"), 0, entry)
            return Exploration(self.function, hollow, [], 0, True, {})
        root = Node(first, 0, entry)
        nodes: dict[Any, Node] = {self._key(root): root}
        counts: dict[tuple[int, int], int] = {(first.start, 0): 1}
        joined: dict[Any, State] = {}
        apart: dict[tuple[int, int], int] = {}
        todo = deque([root])
        returns: list[Node] = []
        calls: dict[Any, list[Node]] = {}
        # Small functions are told apart in more states at one place than large ones.
        most = max(MIN_STATES, min(MAX_STATES, MAX_NODES // (2 * len(good))))
        limit = self.most or max(MAX_NODES, 12 * len(good))
        complete = len(good) <= limit
        while todo and complete:
            node = todo.popleft()
            if len(nodes) > limit or self.spent():
                complete = False
                break
            for start, seen, state, decision, tag in self.step(node, good):
                if tag is not None:
                    calls.setdefault(tag, []).append(node)
                if start is None:
                    continue
                child = Node(self.function.segments[start], seen, state)
                self.forget_dead(child, decision)
                key = self._key(child)
                known = nodes.get(key)
                if known is None:
                    at = (start, seen)
                    counts[at] = counts.get(at, 0) + 1
                    if counts[at] > most:
                        # From here on one state stands for all: each join only loses more.
                        # Error numbers that are ready to be returned stay apart, but for those
                        # of a loop that merely counts down.
                        like: Any = (at, self.errors(child.state))
                        if like not in joined:
                            apart[at] = apart.get(at, 0) + 1
                            like = like if apart[at] <= most else at
                        if like in joined:
                            self.widen(child.state, joined[like], at)
                        joined[like] = child.state
                        key = self._key(child)
                        known = nodes.get(key)
                    if known is None:
                        nodes[key] = child
                        todo.append(child)
                        known = child
                known.before.append((node, decision))
                node.after.append((known, decision))
            if node.result is not None:
                returns.append(node)
        return Exploration(self.function, root, returns, len(nodes), complete, calls)

    def forget_dead(self, node: Node, decision: Decision | None = None) -> None:
        """Drop registers that are not read again, and facts that nothing can ask for any more.

        What ``decision``, just made, has tested stays known for this one node. That an observed
        callee returned an error stays: it tells where an equal constant came from.
        """
        state = node.state
        live = self.function.live.get(node.segment.start, frozenset())
        state.registers = {r: v for r, v in state.registers.items() if r in live}
        if "flags" not in live:
            state.flags = NO_FLAGS
        if not state.facts and not state.seen:
            return
        used: set[Any] = set()
        for value in state.registers.values():
            used |= parts(value)
        for base, cells in state.memory.items():
            used |= parts(base)
            used |= cells.parts()
        for value in state.flags[2:]:
            used |= parts(value)
        if decision is not None and decision.condition is not None:
            used |= parts(decision.condition[1]) | parts(decision.condition[2])

        def alive(term: Any) -> bool:
            if term in used:
                return True
            return isinstance(term, tuple) and term[0] == "low" and term[2] in used

        def wanted(term: Any, spans: Any) -> bool:
            if term[0] == "pair":
                return alive(term[1]) and alive(term[2])
            inner = term[2] if term[0] == "low" else term
            if inner[0] == "ret" and isinstance(inner[2], int) and len(spans) == 1:
                return alive(term) or all(map(is_error, spans[0]))
            return alive(term)

        state.facts = keep(state.facts, wanted)
        state.seen = keep(state.seen, wanted)

    def _key(self, node: Node) -> Any:
        live = self.function.live.get(node.segment.start, frozenset())
        return node.segment.start, node.seen, node.state.key(live)

    def errors(self, state: State) -> frozenset[Any]:
        """Where error numbers lie: registers, and the frame's own stack."""
        out: set[Any] = {r for r in state.registers.items() if is_error(r[1])}
        cells = state.memory.get(sym("init", self.frame, self.arch.stack))
        if cells:
            out |= {(at, value) for at, (_, value) in cells.items() if is_error(value)}
        return frozenset(out)

    def widen(self, state: State, other: State, place: Any) -> None:
        """Lose what differs from an earlier state at the same place, so that loops end."""
        for name, value in state.registers.items():
            if other.registers.get(name) != value:
                state.registers[name] = sym("lost", self.frame, ("loop", place, name))
        for base in list(state.memory):
            theirs = other.memory.get(base)
            if theirs is not None:
                cells = state.memory[base]
                state.memory[base] = Cells(
                    (offset, cell) for offset, cell in cells.items() if theirs.get(offset) == cell
                )
            else:
                del state.memory[base]
        state.facts = {k: v for k, v in state.facts.items() if other.facts.get(k) == v}
        state.seen = {k: v for k, v in state.seen.items() if other.seen.get(k) == v}
        if state.flags != other.flags:
            state.flags = NO_FLAGS
        state.epoch = ("loop", place)

    def step(
        self, node: Node, good: set[tuple[int, int]] | None, what_if: bool = False
    ) -> list[tuple[int | None, int, State, Decision | None, Any]]:
        """Successors of a node: (segment start, seen, state, decision, tag of an observed call).

        With ``good`` None nothing observed constrains the walk: any call may happen. ``what_if``
        lets a branch on an argument or a callee's result go either way, as it would have with
        another value.
        """
        segment = node.segment
        state = node.state.copy()
        fault_state = None
        last = segment.last
        for insn in segment.insns:
            if insn is last:
                break
            apply(state, insn.effects, (node.seen, insn.address))
        if state.dead:
            return []
        seen = node.seen
        hit = None
        if good is not None:
            probe = self._probe(segment, seen)
            if probe is None:
                return []
            seen, hit = probe
            if hit is not None and not self._bind(state, hit):
                return []
        kind = segment.kind
        place = (node.seen, last.address)
        out: list[tuple[int | None, int, State, Decision | None, Any]] = []

        def go(start: int | None, after: int, to: State, decision: Decision | None = None) -> None:
            if (
                not to.dead
                and start in self.function.segments
                and (good is None or (start, after) in good)
            ):
                out.append((start, after, to, decision, None))

        if kind in ("branch", "select"):
            condition = decide(state.flags, last.condition)
            forced = None
            if hit is not None and "flags" in hit.values:
                forced = self.arch.condition_holds(last.condition, hit.values["flags"])
            for taken in (True, False):
                if forced is not None and taken != forced:
                    continue
                facts = assuming(state.facts, condition, not taken)
                if good is not None and assuming(state.witnessed, condition, not taken) is None:
                    continue
                if facts is None and what_if:
                    facts = self._otherwise(state, condition, not taken)
                if facts is None:
                    continue
                to = state.copy()
                to.facts = facts
                if kind == "select":
                    apply(to, last.effects if taken else last.otherwise, place)
                else:
                    apply(to, last.effects, place)
                start = segment.target if kind == "branch" and taken else segment.next
                assert start is not None
                go(start, seen, to, Decision(last.address, kind, taken, condition, start))
        elif kind == "fault":
            assert segment.next is not None and segment.target is not None
            fault_state = state.copy()
            apply(state, last.effects, place)
            go(segment.next, seen, state, Decision(last.address, kind, False, None, segment.next))
            if segment.fix:
                fault_state.registers[segment.fix[0]] = segment.fix[1] & ((1 << 64) - 1)
            else:
                apply(fault_state, (("forget", tuple(last.defines - {"flags"})),), place)
            go(
                segment.target,
                seen,
                fault_state,
                Decision(last.address, kind, True, None, segment.target),
            )
        elif kind == "switch":
            assert segment.index is not None
            index = evaluate(state, segment.index, place)
            for value, start in segment.table:
                facts = assume(state.facts, "eq", index, value, 8)
                if good is not None and assume(state.witnessed, "eq", index, value, 8) is None:
                    continue
                if facts is None and what_if and by_argument(index):
                    facts = state.facts
                if facts is None:
                    continue
                to = state.copy()
                to.facts = facts
                condition = ("eq", index, value, 8)
                go(start, seen, to, Decision(last.address, kind, True, condition, start, value))
        elif kind == "call":
            after = self._consume(segment, seen) if good is not None else seen
            never = good is None and segment.target is not None
            if never and self.code.name(self.code.resolve(segment.target or 0)) in NORETURN:
                return []
            if after is None:
                return []
            node.leaving = state.copy()
            self._call(state, segment, seen, after)
            out.append((segment.next, after, state, None, seen if after > seen else last.address))
            if good is not None and (segment.next, after) not in good:
                return []
        elif kind == "return":
            if good is None or seen == len(self.observed):
                node.leaving = state
                node.result = state.registers.get(
                    self.arch.result, sym("init", self.frame, self.arch.result)
                )
        elif kind == "tail":
            after = self._consume(segment, seen) if good is not None else seen
            if after is not None and (good is None or after == len(self.observed)):
                node.leaving = state.copy()
                self._call(state, segment, seen, after)
                node.result = state.registers[self.arch.result]
                if good is not None:
                    out.append((None, after, state, None, seen if after > seen else last.address))
        elif kind == "trap":
            if self.traps or good is None:
                go(segment.next, seen, state)
        else:
            apply(state, last.effects, place)
            start = segment.target if kind == "jump" else segment.next
            if start is not None:
                go(start, seen, state)
        return out

    def _otherwise(self, state: State, condition: Condition | None, inverse: bool) -> Facts | None:
        """The facts if a condition held that cannot: with other arguments, or callees' results.

        What a path itself has tested stays.
        """
        if condition is None or by_argument(*condition[1:3]):
            return state.facts
        tested = {k: v for k, v in state.facts.items() if not self._is_judged(k, v)}
        if len(tested) == len(state.facts):
            return None
        return assuming(tested, condition, inverse)

    def _is_judged(self, key: Any, spans: Any) -> bool:
        """Whether a fact is just what an observed callee can have returned."""
        size, term = key[1:3] if key[0] == "low" else (8, key)
        if self.result_facts is None or not isinstance(term, tuple):
            return False
        if term[:2] != ("ret", self.frame) or not isinstance(term[2], int):
            return False
        return bool(self.result_facts(term[2]).get(size) == spans)

    def _bind(self, state: State, hit: Hit) -> bool:
        for name, value in hit.values.items():
            term = state.registers.get(name)
            # Where a function aligns its stack, the places in it are known but for that.
            if term is not None and not is_stack(split(term)[0]):
                seen = assume(state.seen, "eq", term, value, 8)
                if seen is None or assume(state.facts, "eq", term, value, 8) is None:
                    return False
                state.seen = seen
        return True

    def _call(self, state: State, segment: Segment, seen: int, after: int) -> None:
        """What a call does to the caller's state."""
        target = self.code.resolve(segment.target) if segment.target is not None else None
        observed = after > seen
        place: Any = ("call", seen) if observed else ("call", seen, segment.last.address)
        count = len(self.arch.arguments)
        if self.arguments is not None and target is not None:
            arity = self.arguments(target)
            count = count if arity is None else min(arity, count)
        escaped: list[tuple[Term, int, int]] = []
        for name in self.arch.arguments[:count]:
            value = state.registers.get(name)
            if value is not None:
                base, offset = split(value)
                if isinstance(base, tuple) and base[0] == "init" and base[2] == self.arch.stack:
                    escaped.append((base, offset, 1 << 20))
        changed = self.arch.clobbered
        if target is not None and not self.code.traceable(target):
            changed = self.code.written(target)
        for name in changed:
            state.registers[name] = sym("lost", self.frame, (place, name))
        forget_memory(state, place, escaped)
        result: Term = sym(
            "ret", self.frame, seen if observed else ("u", segment.last.address, seen)
        )
        state.registers[self.arch.result] = result
        if "flags" in changed or changed is self.arch.clobbered:
            state.flags = NO_FLAGS
        if observed and self.result_facts is not None and self._is_read(segment):
            for size, spans in self.result_facts(seen).items():
                state.facts = {**state.facts, low(size, result): spans}

    def _is_read(self, segment: Segment) -> bool:
        """Whether anything looks at what a call returns."""
        if segment.next is None:
            return True
        return self.arch.result in self.function.live.get(segment.next, frozenset())

    def call_of(self, term: Any) -> int | None:
        """The address of the call in this frame that returned ``term``, None if it is no result."""
        if term[:2] != ("ret", self.frame):
            return None
        if not isinstance(term[2], int):
            return int(term[2][1])
        item = self.observed[term[2]]
        site = item.site if isinstance(item, Callee) else None
        calls = (s.last for s in self.function.segments.values() if s.kind == "call")
        return next((call.address for call in calls if call.end == site), None)


def is_error(value: Term) -> bool:
    """Whether a term is an error number, in 4 or 8 bytes."""
    return isinstance(value, int) and (
        0 < (1 << 64) - value <= 4095 or 0 < (1 << 32) - value <= 4095
    )


def entry_state(
    frame: int, known: dict[str, Term] | None = None, facts: Facts | None = None
) -> State:
    """The state on entry to a frame: every register unknown but for ``known``."""
    return State(frame, dict(known or {}), {}, dict(facts or {}))


def prune(keep: list[Node]) -> set[int]:
    """The identities of the nodes on some way from the root to one of ``keep``."""
    good = {id(n) for n in keep}
    todo = list(keep)
    while todo:
        for prior, _ in todo.pop().before:
            if id(prior) not in good:
                good.add(id(prior))
                todo.append(prior)
    return good
