"""Where a returned value was made: down the calls, along the data flow of the result register.

Each frame is explored under what was observed of it. Where the result is a callee's, the search
goes on in that callee; where it is a constant, the frame is the origin, and the last branch whose
other side could still have returned something else is what decided.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from kwhy.errors import FATAL
from kwhy.flow.cfg import Code, Function
from kwhy.flow.decide import Decider, Passed
from kwhy.flow.explore import (
    Callee,
    Decision,
    Exploration,
    Explorer,
    Hit,
    Node,
    Observation,
    entry_state,
    prune,
)
from kwhy.flow.outcome import Result, in_register
from kwhy.flow.state import EMPTY, Cells, State, split
from kwhy.flow.terms import (
    Intervals,
    Term,
    add,
    assume,
    domain,
    known,
    low,
    mask,
    meet,
    parts,
    replaced,
    sym,
)

MAX_DEPTH = 48
MAX_ORACLE_DEPTH = 4
MAX_ORACLE_CALLS = 400
MAX_ORACLE_NODES = 8000
MAX_FINDINGS = 32
MAX_WORK = 150_000
"""Nodes explored for one failure; what is beyond makes the answer uncertain, not endless."""
PATIENCE = 60.0
"""Seconds of processor time for one search; what it then has not looked at, it says so."""


class Called(Protocol):
    """A node of the recorded call tree (``kwhy.record.model.Call``)."""

    @property
    def function(self) -> int: ...
    @property
    def site(self) -> int | None: ...
    @property
    def time(self) -> int: ...
    @property
    def children(self) -> Sequence["Called"]: ...
    @property
    def kind(self) -> str: ...


@dataclass(slots=True)
class Frame:
    """One frame of the chain: what was explored of it, and what it had to return.

    ``accepting`` are the nodes where it may have returned that.
    """

    number: int
    call: Called
    function: Function
    parent: "Frame | None"
    site: int | None
    want: int
    size: int
    explorer: Explorer
    exploration: Exploration
    accepting: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Finding:
    """One place where the value can have been made.

    ``kind``: "constant" (the frame's own code), "memory" (loaded from memory that nobody here
    wrote), "argument" (it was handed in), "unknown". ``deciding`` are the last open branches, each
    with the node it stands at; ``accepting`` the nodes where the frame returned.
    """

    kind: Literal["constant", "memory", "argument", "unknown"]
    frame: Frame
    value: Term
    deciding: list[tuple[Node, Decision]]
    accepting: list[Node]
    notes: list[str] = field(default_factory=list)

    def chain(self) -> list[Frame]:
        """The frames from the origin up to the first."""
        return list(_upwards(self.frame))

    def key(self) -> Any:
        """What makes two findings the same answer."""
        edges = frozenset((d.address, d.taken, d.index) for _, d in self.deciding)
        return self.frame.function.entry, self.kind, edges


class Tracer:
    """Traces returned values through one recorded call tree.

    ``hits`` are probe hits by the identity of the frame's call (in order of time), of probes
    ``armed`` at those addresses; ``arity`` tells
    how many arguments a function takes, ``returns_bool`` whether its result is a truth value,
    ``returns_error`` whether it can be an error number (an id of -1 is none).
    ``passing`` tells that the source merely passes by a branch (see ``Decider``), ``spelled``
    whether it makes the wanted error in the frame of a finding itself.
    ``quiet`` is Explorer's.
    ``oracle`` lets what a callee can have returned, by its own observed calls, rule out paths.
    ``settled`` are frames, by the identity of their call, that were explored without that before
    and leave nothing open: they are not explored again.
    """

    def __init__(
        self,
        code: Code,
        *,
        hits: dict[int, list[tuple[int, Hit]]] | None = None,
        armed: frozenset[int] = frozenset(),
        arity: Callable[[int], int | None] | None = None,
        returns_bool: Callable[[int], bool] | None = None,
        returns_error: Callable[[int], bool] | None = None,
        oracle: bool = False,
        settled: "dict[int, Frame] | None" = None,
        passing: Passed | None = None,
        spelled: Callable[[Finding], bool] | None = None,
        quiet: Callable[[int], bool] | None = None,
    ) -> None:
        self.code = code
        self.arch = code.arch
        self.hits = hits or {}
        self.armed = armed
        self.arity = arity
        self.returns_bool = returns_bool
        self.returns_error = returns_error
        self.oracle = oracle
        self.settled = settled or {}
        self.decider = Decider(passing)
        self.spelled = spelled
        self.quiet = quiet
        self.notes: list[str] = []
        self.work = 0
        self._end = time.process_time() + PATIENCE
        self.cut = False
        self.frames: dict[int, tuple[Called, Function, Observation]] = {}
        self._domains: dict[tuple[int, int], dict[int, Intervals]] = {}
        self._shapes: dict[int, int] = {}
        self._numbers: dict[Any, int] = {}
        self._heights: dict[int, int] = {}

    # --- one frame ------------------------------------------------------------------------

    def _observed(self, call: Called) -> list[Callee | Hit]:
        items: list[tuple[int, int, Callee | Hit]] = [
            (child.time, 1, Callee(child.function, child.site, child.kind == "implicit", child))
            for child in call.children
            if child.kind != "interrupt"
        ]
        items += [(time, 0, hit) for time, hit in self.hits.get(id(call), [])]
        if len(self.hits.get(id(call), [])):
            items.sort(key=lambda item: (item[0], item[1]))
        return [item for _, _, item in items]

    def explore(self, call: Called, entry: State, depth: int = 0) -> tuple[Explorer, Exploration]:
        """All that fits what was observed of ``call``; relaxed in steps when nothing does."""
        before = self.settled.get(id(call))
        if before is not None and before.exploration.root.state == entry:
            self.frames[entry.frame] = (call, before.function, before.explorer.observed)
            return before.explorer, before.exploration
        function = self.code.function(call.function)
        observed = self._observed(call)
        explorer = result = None
        for items, relaxed, traps, armed in self._readings(function, observed):
            explorer = Explorer(
                self.code,
                entry.frame,
                function,
                items,
                relaxed=relaxed,
                traps=traps,
                result_facts=functools.partial(self._result_facts, items, depth),
                arguments=self.arity,
                armed=armed,
                quiet=self.quiet,
                spent=self._spent,
                most=MAX_ORACLE_NODES if depth else None,
            )
            result = explorer.run(entry.copy())
            self.work += result.nodes
            if result.returns or (depth and not result.complete):
                break
        assert explorer is not None and result is not None
        self.frames[entry.frame] = (call, function, explorer.observed)
        if not result.complete:
            self._note(f"{function.name} has more paths than were followed")
        return explorer, result

    def _readings(
        self, function: Function, observed: list[Callee | Hit]
    ) -> Iterator[tuple[list[Callee | Hit], bool, bool, frozenset[int]]]:
        """Ways to read an observation: (items, relaxed, through traps, armed), strictest first."""
        armed, none = self.armed, frozenset[int]()
        yield observed, False, False, armed
        # A tail call of an untraced function leaves no mark: what it called seems to be called by
        # us, from nowhere.
        for segment in function.segments.values():
            if segment.kind != "tail" or segment.target is None:
                continue
            target = self.code.resolve(segment.target)
            if self.code.traceable(target):
                continue
            for start in range(len(observed)):
                rest = [o.tag for o in observed[start:] if isinstance(o, Callee)]
                if all(o is not None for o in rest):
                    between = _Untraced(target, children=rest)
                    grouped = [*observed[:start], Callee(target, None, True, between)]
                    yield grouped, False, False, armed
        if armed:
            # A probe can miss a hit, which must not cost the answer.
            bare: list[Callee | Hit] = [o for o in observed if isinstance(o, Callee)]
            yield bare, False, False, none
        yield observed, False, True, armed
        yield observed, True, True, armed

    def _result_facts(
        self, observed: Sequence[Callee | Hit], depth: int, k: int
    ) -> dict[int, Intervals]:
        item = observed[k]
        if not isinstance(item, Callee):
            return {}
        if self.oracle and depth < MAX_ORACLE_DEPTH and item.tag is not None:
            return self.returned(item.tag, depth + 1)
        if self.returns_bool is not None and self.returns_bool(item.function):
            return {1: ((0, 1),)}
        return {}

    def returned(self, call: Called, depth: int = 0) -> dict[int, Intervals]:
        """What a recorded call can have returned, judged by its own calls; {} if unknown.

        The intervals are by size in bytes (1, 4, 8) of the result register looked at.
        """
        # Where the depth keeps no callee from being asked, it does not matter but for the first.
        whole = depth > 0 and depth + self._height(call) <= MAX_ORACLE_DEPTH
        key = self._shape(call), 1 if whole else depth
        if key not in self._domains:
            self._domains[key] = {}
            if _weight(call) <= MAX_ORACLE_CALLS and not self._spent(part=2):
                try:
                    self._domains[key] = self._returned(call, depth)
                except FATAL:
                    raise
                except Exception as error:  # unreadable code: nothing is known of the result
                    self._note(f"{self.code.name(call.function)}: {error}")
        return self._domains[key]

    def _spent(self, part: int = 1) -> bool:
        """Whether the search has had its share (all, or a half) of work and time."""
        left = self._end - time.process_time()
        return self.work > MAX_WORK // part or left < PATIENCE * (1 - 1 / part)

    def _shape(self, call: Called) -> int:
        """A number that calls of one function share when the same was observed of them."""
        found = self._shapes.get(id(call))
        if found is None:
            content: Any = id(call)
            if id(call) not in self.hits:
                children = tuple((c.site, c.kind, self._shape(c)) for c in call.children)
                content = call.function, children
            found = self._numbers.setdefault(content, len(self._numbers))
            self._shapes[id(call)] = found
        return found

    def _height(self, call: Called) -> int:
        """How many calls lie below one another in a call."""
        shape = self._shape(call)
        if shape not in self._heights:
            below = (1 + self._height(child) for child in call.children)
            self._heights[shape] = max(below, default=0)
        return self._heights[shape]

    def _returned(self, call: Called, depth: int) -> dict[int, Intervals]:
        number = len(self.frames) + 1
        self.frames[number] = (call, Function("", 0, {}, frozenset()), ())
        _, exploration = self.explore(call, entry_state(number), depth)
        boolean = self.returns_bool is not None and self.returns_bool(call.function)
        if not exploration.returns or not exploration.complete:
            return {1: ((0, 1),)} if boolean else {}
        out: dict[int, Intervals] = {}
        for size in (1, 4, 8):
            spans: set[tuple[int, int]] = set()
            for node in exploration.returns:
                assert node.leaving is not None and node.result is not None
                spans |= set(domain(low(size, node.result), node.leaving.witnessed))
            merged = _merge(spans)
            if merged != ((0, mask(size)),):
                out[size] = merged
        if boolean:
            out.setdefault(1, ((0, 1),))
        return out

    # --- the whole chain ------------------------------------------------------------------

    def trace(
        self,
        call: Called,
        want: int,
        entry: State,
        parent: Frame | None = None,
        site: int | None = None,
        depth: int = 0,
    ) -> list[Finding]:
        """Where ``want`` (a signed value that ``call`` returned) can have been made."""
        if depth > MAX_DEPTH or self._spent():
            self.cut = True
            return []
        explorer, exploration = self.explore(call, entry)
        goal, size = (want & mask(4), 4)
        frame = Frame(
            entry.frame, call, exploration.function, parent, site, want, size, explorer, exploration
        )
        for node in exploration.returns:
            assert node.leaving is not None and node.result is not None
            if assume(node.leaving.witnessed, "eq", node.result, goal, size) is not None:
                frame.accepting.append(node)
        groups: dict[Any, list[Node]] = {}
        for node in frame.accepting:
            assert node.leaving is not None and node.result is not None
            groups.setdefault(self._source(frame, node.leaving, node.result), []).append(node)
        findings: list[Finding] = []
        for key, nodes in groups.items():
            findings += self._follow(frame, key, nodes, depth)
            if len(findings) > MAX_FINDINGS:
                break
        return _distinct(findings)

    def _source(self, frame: Frame, state: State, term: Term) -> Any:
        """Which kind of place a result came from."""
        inner = term
        while isinstance(inner, tuple) and inner[0] in ("low", "sext", "join"):
            inner = inner[2]
        if isinstance(inner, int):
            return ("constant",)
        if inner[0] == "ret":
            # Of a frame above: the error was handed down and came back.
            above = next((f for f in _upwards(frame) if f.number == inner[1]), None)
            if above is not None:
                return ("callee", inner[2]) if above is frame else ("above", above.number, inner[2])
        if inner[0] == "arg" and isinstance(inner[1], tuple) and frame.parent is not None:
            return ("handed",)
        if inner[0] == "neg":  # return -sk->sk_err;
            inner = inner[2]
            while isinstance(inner, tuple) and inner[0] in ("low", "sext"):
                inner = inner[2]
            if isinstance(inner, tuple) and inner[0] == "mem":
                return ("memory", inner)
            truth = _by_truth(term, state, frame.want)
            return ("computed", *truth) if truth else ("unknown", "neg")
        if inner[0] == "mem":
            base, _ = split(inner[1])
            if isinstance(base, tuple) and base[0] == "init" and base[2] == self.arch.stack:
                return ("written", inner[1], inner[2], inner[3])
            return ("memory", inner)
        if known(low(4, term), state.witnessed) is not None:
            return ("constant",)
        if inner[0] == "init":
            return ("argument", inner)
        truth = _by_truth(term, state, frame.want)
        return ("computed", *truth) if truth else ("unknown", inner[0])

    def _passed_on(self, frame: Frame, finding: Finding) -> int | None:
        """The observed callee whose error was handed on as a constant of the frame's own.

        After ``if (ret == -ENOEXEC)``, and after ``if (ret)`` of a function that has but one error,
        compilers return a constant in place of ``ret``.
        """
        tested = {k for edge in finding.deciding for k in self._tested(frame, *edge)}
        if frame.want >= 0 or not tested:
            return None
        if len(tested) == 1 and None not in tested:
            return tested.pop()
        # Something else was asked last: does the source make the error, or only hold it still?
        if self.spelled is not None and self.spelled(finding):
            return None
        held = [k for node in finding.accepting for k in self._held(frame, node)]
        return max(held, default=None)

    def _handed_in(self, frame: Frame, finding: Finding, depth: int) -> list[Finding]:
        """Findings for an argument that was found to be the wanted error, and was returned: after
        ``if (ret == -ERESTARTNOHAND)`` compilers return a constant in place of ``ret``."""
        if frame.want >= 0 or self.spelled is None or self.spelled(finding):
            return []
        goal, before = frame.want & mask(4), frame.exploration.root.state
        for name in self.arch.arguments:
            term = before.registers.get(name)
            if term is None or isinstance(term, int):
                continue
            half = low(4, term)
            leaving = [node.leaving for node in finding.accepting if node.leaving is not None]
            if known(half, before.facts) is None and all(
                known(half, state.facts) == goal for state in leaving
            ):
                source = self._source(frame, leaving[0], term)
                if source[0] in ("above", "handed", "argument"):
                    return self._follow(frame, source, finding.accepting, depth)
        return []

    def _held(self, frame: Frame, node: Node) -> list[int]:
        """The observed callees whose results are known to be the wanted error at a return."""
        assert node.leaving is not None
        facts = node.leaving.facts
        terms = {key[2] if key[0] == "low" else key for key in facts}
        return [
            term[2]
            for term in terms
            if isinstance(term, tuple)
            and term[:2] == ("ret", frame.number)
            and isinstance(term[2], int)
            and known(low(4, term), facts) == frame.want & mask(4)
            and isinstance(item := frame.explorer.observed[term[2]], Callee)
            and self._may_be_error(item)
        ]

    def _tested(self, frame: Frame, node: Node, decision: Decision) -> set[int | None]:
        """Which callees' results a branch found to be the wanted error; {None} if it did not."""
        ahead = next((child for child, after in node.after if after is decision), None)
        if ahead is None or decision.condition is None:
            return {None}
        want = ((frame.want & mask(4),) * 2,)
        found: set[int | None] = set()
        for part in {p for side in decision.condition[1:3] for p in parts(side)}:
            if part[:2] != ("ret", frame.number) or not isinstance(part[2], int):
                continue
            item = frame.explorer.observed[part[2]]
            if not isinstance(item, Callee) or item.tag is None or not self._may_be_error(item):
                continue
            seen = domain(low(4, part), ahead.state.facts)
            judged = self.returned(item.tag).get(4, seen)
            found.add(part[2] if meet(seen, judged) == want else None)
        return found or {None}

    def _may_be_error(self, item: Callee) -> bool:
        return self.returns_error is None or self.returns_error(item.function)

    def _follow(self, frame: Frame, key: Any, nodes: list[Node], depth: int) -> list[Finding]:
        if key[0] == "callee":
            found = self._into(frame, key[1], nodes, depth)
            if found is not None:
                return found
            return [self._here(frame, "unknown", nodes)]
        if key[0] == "above":
            above = next(f for f in _upwards(frame) if f.number == key[1])
            found = self._into(above, key[2], above.accepting, depth)
            if found:
                return found
            return [self._here(frame, "unknown", nodes)]
        if key[0] == "handed" and frame.parent is not None:
            return [self._here(frame.parent, "constant", frame.parent.accepting)]
        if key[0] == "constant":
            finding = self._here(frame, "constant", nodes)
            k = self._passed_on(frame, finding)
            found = self._into(frame, k, nodes, depth) if k is not None else None
            return found or self._handed_in(frame, finding, depth) or [finding]
        if key[0] == "argument":
            return self._given(frame, key[1], depth) or [self._here(frame, "argument", nodes)]
        if key[0] == "computed":
            return [self._computed(frame, key[1], key[2], nodes)]
        if key[0] == "written":
            found = self._writer(frame, key, nodes, depth)
            if found:
                return found
            return [self._here(frame, "memory", nodes)]
        return [self._here(frame, key[0], nodes)]

    def _here(
        self, frame: Frame, kind: Any, nodes: list[Node], result: Result = in_register
    ) -> Finding:
        made = result(nodes[0])
        value: Term = frame.want & mask(8) if made is None else made
        proof = kind in ("constant", "memory")
        budget = self.decider.budget if proof else self.decider.hints
        if self._spent():
            budget.left = 0
        edges = self.decider.deciding(frame.explorer, frame.want, frame.size, nodes, result, budget)
        if budget.left <= 0:
            # Half of the branches of what is a guess anyway would make it look like another's.
            edges = edges if proof else []
            self.cut = self.cut or proof
        return Finding(kind, frame, value, edges, nodes)

    def _given(self, frame: Frame, argument: Any, depth: int) -> list[Finding]:
        """Findings for an error that was handed in, whatever the callers' states say it was."""
        above, register = frame.parent, argument[2]
        if above is None or argument[1] != frame.number:
            return []
        groups: dict[Any, list[Node]] = {}
        for k, item in enumerate(above.explorer.observed):
            if not isinstance(item, Callee) or item.tag is not frame.call:
                continue
            for caller in above.exploration.calls.get(k, []):
                state = caller.leaving
                value = state.registers.get(register) if state is not None else None
                if state is None or value is None:
                    continue
                if assume(state.witnessed, "eq", value, frame.want & mask(4), 4) is not None:
                    groups.setdefault(self._source(above, state, value), []).append(caller)
        out: list[Finding] = []
        for source, callers in groups.items():
            if source[0] in ("callee", "constant"):
                out += self._follow(above, source, callers, depth + 1)
        return out

    def _computed(self, frame: Frame, term: Term, value: int, nodes: list[Node]) -> Finding:
        """``return ok() ? 0 : -EPERM`` may be made without a branch, as ``ok() - 1``."""
        finding = self._here(frame, "constant", nodes)
        edges = {}
        for node in nodes:
            insns = node.segment.insns
            last = next((i for i in reversed(insns) if self.arch.result in i.defines), insns[0])
            condition = ("eq", term, value, 1)
            decision = Decision(last.address, "computed", True, condition, node.segment.start)
            edges[last.address] = (node, decision)
        finding.deciding = list(edges.values())
        return finding

    def _into(self, frame: Frame, k: Any, nodes: list[Node], depth: int) -> list[Finding] | None:
        """Findings in the callee whose result was passed on; None if it cannot be looked into."""
        keep = prune(nodes)
        observed = frame.explorer.observed
        if isinstance(k, int):
            item = observed[k]
            assert isinstance(item, Callee)
            callers = [n for n in frame.exploration.calls.get(k, []) if id(n) in keep]
            callers = callers or frame.exploration.calls.get(k, [])
            child: Called = item.tag if item.tag is not None else _Untraced(item.function)
        else:
            callers = [n for n in frame.exploration.calls.get(k[1], []) if id(n) in keep]
            if not callers or callers[0].segment.target is None:
                return None
            child = _Untraced(self.code.resolve(callers[0].segment.target))
        entry = self.entry(callers)
        site = callers[0].segment.last.end if callers else None
        try:
            return self.trace(child, frame.want, entry, frame, site, depth + 1)
        except FATAL:
            raise
        except Exception as error:
            self._note(f"{self.code.name(child.function)} cannot be followed: {error}")
            return None

    def entry(self, callers: list[Node]) -> State:
        """A callee's entry state: what all the callers' states agree on.

        A constant is still an argument, also in a structure: the callee's branches on it could
        have gone otherwise.
        """
        number = len(self.frames) + 1
        self.frames[number] = (_Untraced(0), Function("", 0, {}, frozenset()), ())
        states = [n.leaving for n in callers if n.leaving is not None]
        entry = entry_state(number)
        if not states:
            return entry
        first = states[0]
        for name in self.arch.arguments:
            value = first.registers.get(name)
            if value is not None and all(s.registers.get(name) == value for s in states):
                entry.registers[name] = _passed((number, name), value)
        for base, cells in first.memory.items():
            shared = Cells(
                (offset, (size, _passed((number, add(base, offset), size), value)))
                for offset, (size, value) in cells.items()
                if all(s.memory.get(base, EMPTY).get(offset) == (size, value) for s in states)
            )
            if shared:
                entry.memory[base] = shared
        entry.facts = {
            k: v for k, v in first.facts.items() if all(s.facts.get(k) == v for s in states)
        }
        entry.seen = {
            k: v for k, v in first.seen.items() if all(s.seen.get(k) == v for s in states)
        }
        return entry

    def _writer(self, frame: Frame, key: Any, nodes: list[Node], depth: int) -> list[Finding]:
        """Findings in the callee that wrote the stack slot whose content was returned."""
        _, address, size, epoch = key
        last = _seen_by(epoch[1])
        if epoch[0] != frame.number or last is None:
            return []
        keep = prune(nodes)
        observed = frame.explorer.observed
        for k in range(min(last, len(observed) - 1), -1, -1):
            item = observed[k]
            if not isinstance(item, Callee) or item.tag is None:
                continue
            callers = [n for n in frame.exploration.calls.get(k, []) if id(n) in keep]
            given = any(
                n.leaving is not None and n.leaving.registers.get(name) == address
                for n in callers
                for name in self.arch.arguments
            )
            if not given:
                continue
            found = self._wrote(frame, item.tag, callers, address, size, depth)
            if found is not None:
                return found
        return []

    def _wrote(
        self, frame: Frame, child: Called, callers: list[Node], address: Term, size: int, depth: int
    ) -> list[Finding] | None:
        """Findings for a callee that left the value at ``address``; None if it wrote nothing."""
        entry = self.entry(callers)
        explorer, exploration = self.explore(child, entry)
        goal = frame.want & mask(min(size, 4))
        below = Frame(
            entry.frame, child, exploration.function, frame, callers[0].segment.last.end,
            frame.want, min(size, 4), explorer, exploration,
        )  # fmt: skip
        base, offset = split(address)

        def written(node: Node) -> Term | None:
            assert node.leaving is not None
            cell = node.leaving.memory.get(base, EMPTY).get(offset)
            return None if cell is None else cell[1]

        made: dict[str, list[Node]] = {}
        onward: dict[Any, list[Node]] = {}
        for node in exploration.returns:
            assert node.leaving is not None
            value = written(node)
            if value is None:
                continue
            if assume(node.leaving.witnessed, "eq", value, goal, min(size, 4)) is None:
                continue
            kind = self._source(below, node.leaving, value)
            if kind[0] in ("constant", "memory"):
                made.setdefault(kind[0], []).append(node)
            elif kind[0] in ("callee", "written"):
                onward.setdefault(kind, []).append(node)
        out: list[Finding] = []
        for kind, nodes in onward.items():
            if kind[0] == "callee":
                out += self._into(below, kind[1], nodes, depth + 1) or []
            else:
                out += self._writer(below, kind, nodes, depth + 1)
        for source, nodes in made.items():
            finding = self._here(below, source, nodes, written)
            finding.notes.append("returned through memory")
            out.append(finding)
        if not out:
            deeper = ("written", address, size, (below.number, ("call", len(explorer.observed))))
            out = self._writer(below, deeper, exploration.returns, depth + 1)
        return out or None

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


@dataclass(slots=True)
class _Untraced:
    """A call that left no event: an untraced function."""

    function: int
    site: int | None = None
    time: int = 0
    children: Sequence[Called] = ()
    kind: str = "implicit"


def above_parting(findings: Sequence[Finding]) -> dict[int, Frame]:
    """The frames, by call, that all findings have come through alike, above where they part."""
    chains = [list(reversed(each.chain())) for each in findings]
    alike = itertools.takewhile(
        lambda level: len({id(frame.call) for frame in level}) == 1, zip(*chains, strict=False)
    )
    return {id(level[0].call): level[0] for level in [*alike][:-1]}


def _by_truth(term: Term, state: State, want: int) -> tuple[Term, int] | None:
    """The truth value that a result is computed from, and which of the two gives ``want``."""
    for part in parts(term):
        truth = low(1, part)
        if part[0] != "ret" or any(hi > 1 for _, hi in domain(truth, state.witnessed)):
            continue
        giving = [
            value
            for value in (0, 1)
            if assume(state.witnessed, "eq", truth, value, 1) is not None
            and low(4, replaced(term, part, value)) == want & mask(4)
        ]
        if len(giving) == 1:
            return truth, giving[0]
    return None


def _upwards(frame: Frame | None) -> Iterator[Frame]:
    """A frame and those above it."""
    while frame is not None:
        yield frame
        frame = frame.parent


def _seen_by(place: Any) -> int | None:
    """How many observations came before the place that an epoch is named after."""
    while isinstance(place, tuple):
        place = place[1] if place[0] in ("call", "loop") else place[0]
    return place if isinstance(place, int) else None


def _passed(place: tuple[Any, ...], value: Term) -> Term:
    """A value as the callee gets it: what is no address stays known, but as an argument."""
    return sym("arg", place, value) if isinstance(value, int) and value <= mask(4) else value


def _weight(call: Called) -> int:
    total, todo = 0, [call]
    while todo and total <= MAX_ORACLE_CALLS:
        item = todo.pop()
        total += 1
        todo.extend(item.children)
    return total


def _merge(spans: set[tuple[int, int]]) -> Intervals:
    out: list[tuple[int, int]] = []
    for lo, hi in sorted(spans):
        if out and lo <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], hi))
        else:
            out.append((lo, hi))
    return tuple(out)


def _distinct(findings: list[Finding]) -> list[Finding]:
    out: dict[Any, Finding] = {}
    for finding in findings:
        out.setdefault(finding.key(), finding)
    return list(out.values())
