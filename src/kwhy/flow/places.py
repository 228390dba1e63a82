"""Which registers and stack slots hold which value, everywhere in a function.

An abstract run of a function over all its paths at once. A value is named by where it was made: a
register at the function's entry, an instruction, a place where two paths meet. Two places with the
same name hold the same value at that moment, whatever it is; that is how an argument is found long
after its register was reused. What cannot be named surely gets a fresh name or none: a wrong name
would be a wrong value.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from kwhy.arch import Arch
from kwhy.flow.cfg import NORETURN, Code, Segment
from kwhy.flow.formula import CONST, STACK, Base, Name, Place, formula
from kwhy.flow.ir import Effect, Expr, Insn

MAX_SEGMENTS = 4000
MAX_VISITS = 60_000
_REACH = 128
"""Bytes below an address that was given away which its new holder may still change: it may point
into the middle of a structure."""
_LOW = ("const", 0xFFFFFFFF)


@dataclass(slots=True)
class State:
    """Names by place. ``given`` is the lowest stack address that somebody else may hold."""

    names: dict[Place, Name]
    given: int | None = None

    def copy(self) -> "State":
        """An independent copy."""
        return State(dict(self.names), self.given)


@dataclass(frozen=True, slots=True)
class Call:
    """A call site: what the registers held, and the places that still hold it in the callee."""

    insn: Insn
    before: dict[Place, Name]
    surviving: dict[Place, Name]


@dataclass(frozen=True, slots=True)
class Tail:
    """A jump to the start of another function, and what the places held then."""

    target: int | None
    before: dict[Place, Name]


class Places:
    """The names in one function; ``calls`` by return address, ``tails`` the ways out by a jump.

    ``made`` tells by base what was computed: an expression with ("name", Name) for registers, or
    ("either", Name, ...) where paths meet.
    All empty where analysis gave up.
    """

    def __init__(self, code: Code, arch: Arch, entry: int) -> None:
        self._arch, self._code = arch, code
        self._saved = frozenset(arch.registers) - arch.clobbered - {arch.stack}
        self.calls: dict[int, Call] = {}
        self.tails: list[Tail] = []
        self.made: dict[Base, Expr] = {}
        function = code.function(entry)
        self.segments = function.segments
        if function.incomplete or len(function.segments) > MAX_SEGMENTS:
            return
        self._faulting = {s.last.address for s in self.segments.values() if s.kind == "fault"}
        states = self._run(entry)
        for start, state in (states or {}).items():
            segment = function.segments[start]
            if segment.kind == "call":
                self._call_site(segment, state.copy())
            for target in segment.leaves(function.segments):
                left = state.copy()
                for insn in segment.insns:
                    self._step(left, insn)
                self.tails.append(Tail(target, left.names))

    def reaches(self, after: int, call: int) -> bool:
        """Whether the call returning to ``call`` can follow the one returning to ``after``."""
        seen, todo = set[int](), [after]
        while todo:
            start = todo.pop()
            segment = self.segments.get(start)
            if segment is None or start in seen:
                continue
            seen.add(start)
            if segment.kind == "call" and segment.last.end == call:
                return True
            todo += segment.successors()
        return False

    def _run(self, entry: int) -> dict[int, State] | None:
        names: dict[Place, Name] = {r: Name(("entry", r)) for r in self._arch.registers}
        names[self._arch.stack] = Name(STACK, -8)  # the return address is below the caller's
        states: dict[int, State] = {}
        ways_in: dict[int, dict[object, State]] = {entry: {"entry": State(names)}}
        todo, visits = [entry], 0
        while todo:
            start = heapq.heappop(todo)  # by address: mostly those before come first
            ways = list(ways_in[start].values())
            state = _met(ways, start)
            for place, name in state.names.items():
                if name.base == ("meet", start, place):
                    met = dict.fromkeys(way.names[place] for way in ways)
                    self.made[name.base] = ("either", *(way for way in met if way != name))
            if states.get(start) == state:
                continue
            visits += 1
            if visits > MAX_VISITS:
                return None
            states[start] = state
            for number, (target, out) in enumerate(self._leave(self.segments[start], state.copy())):
                if target in self.segments:
                    ways_in.setdefault(target, {})[start, number] = out
                    heapq.heappush(todo, target)
        return states

    def _leave(self, segment: Segment, state: State) -> Iterator[tuple[int, State]]:
        """The states in which the segment's successors begin."""
        for insn in segment.insns[:-1]:
            self._step(state, insn)
        faulted = state.copy()
        self._step(state, segment.last)
        if segment.kind == "call" and self._never_returns(segment):
            return
        for target in segment.successors():
            if segment.kind == "fault" and target == segment.target:
                for effect in segment.last.effects:
                    if effect[0] == "set":
                        faulted.names[effect[1]] = Name(("at", segment.last.address, effect[1]))
                yield target, faulted.copy()
            else:
                yield target, state.copy()

    def _never_returns(self, call: Segment) -> bool:
        target = call.target
        return target is not None and self._code.name(self._code.resolve(target)) in NORETURN

    def _call_site(self, segment: Segment, state: State) -> None:
        for insn in segment.insns[:-1]:
            self._step(state, insn)
        before = dict(state.names)
        self._give_away(state)
        surviving = {
            place: name
            for place, name in state.names.items()
            if isinstance(place, int) or place in self._saved
        }
        self.calls[segment.last.end] = Call(segment.last, before, surviving)

    # -- one instruction ---------------------------------------------------------------------------

    def _step(self, state: State, insn: Insn) -> None:
        names = state.names
        stale = [p for p, n in names.items() if n.base[0] == "at" and n.base[1] == insn.address]
        for place in stale:
            if isinstance(place, str):
                names[place] = Name(("old", insn.address, place))
            else:
                del names[place]
        if insn.kind == "call":
            self._give_away(state)
            for register in self._arch.clobbered:
                names[register] = Name(("at", insn.address, register))
            return
        if insn.kind == "select":
            other = state.copy()
            for effect in insn.otherwise:
                self._effect(other, insn, effect)
        for effect in insn.effects:
            self._effect(state, insn, effect)
        if insn.kind == "select":
            for place in set(names) | set(other.names):
                if names.get(place) != other.names.get(place):
                    names[place] = Name(("at", insn.address, place))
                self.made.pop(("at", insn.address, place), None)

    def _effect(self, state: State, insn: Insn, effect: Effect) -> None:
        names = state.names
        if effect[0] == "set":
            _set, register, size, expr = effect
            fresh = Name(("at", insn.address, register))
            value = self._value(state, expr)
            if value is None or size < 4:
                self._make(state, fresh.base, size, expr)
            if value is None and size == 8:
                value = fresh
                slot = self._slot(state, expr)
                if slot is not None:
                    names[slot] = fresh
            if size == 4 and value is not None:
                value = value.low()
            names[register] = value if value is not None and size >= 4 else fresh
        elif effect[0] == "store":
            _store, address, size, expr = effect
            value = self._value(state, expr) if size == 8 else None
            self._store(state, self._value(state, address), size, value, insn)
        elif effect[0] == "forget":
            for register in effect[1]:
                names[register] = Name(("at", insn.address, register))
        elif effect[0] == "swap":
            _swap, address, size, register = effect
            held = self._value(state, ("reg", register, 8)) if size == 8 else None
            self._store(state, self._value(state, address), size, held, insn)
            names[register] = Name(("at", insn.address, register))
        elif effect[0] in ("copy", "fill"):
            self._overwrite(state, self._value(state, effect[1]))

    def _overwrite(self, state: State, at: Name | None) -> None:
        """Any number of bytes from an address upwards."""
        if at is not None and at.base == STACK:
            self._forget_above(state, at.offset - 8)
        else:
            self._forget_given(state)

    def _make(self, state: State, base: Base, size: int, expr: Expr) -> None:
        made = formula(state.names, expr)
        if made is None or size < 4 or base[1] in self._faulting:
            self.made.pop(base, None)
        else:
            self.made[base] = made if size == 8 else ("bin", "and", 8, made, _LOW)

    def _slot(self, state: State, expr: Expr) -> int | None:
        if expr[0] != "load" or expr[2] != 8:
            return None
        at = self._value(state, expr[1])
        return at.offset if at is not None and at.base == STACK else None

    def _store(
        self, state: State, at: Name | None, size: int, value: Name | None, insn: Insn
    ) -> None:
        names = state.names
        if value is not None and value.base == STACK:
            self._given(state, value.offset)
        if at is None or at.base != STACK:
            self._forget_given(state)
            return
        for slot in [
            p for p in names if isinstance(p, int) and at.offset - 8 < p < at.offset + size
        ]:
            del names[slot]
        if size == 8:
            names[at.offset] = value or Name(("at", insn.address, at.offset))

    def _value(self, state: State, expr: Expr) -> Name | None:
        kind = expr[0]
        if kind == "reg":
            name = state.names.get(expr[1])
            if name is None or expr[2] < 4:
                return None
            return name if expr[2] == 8 else name.low()
        if kind == "const":
            return Name(CONST, expr[1])
        if kind == "load":
            at = self._value(state, expr[1])
            if at is None or at.base != STACK or expr[2] < 4:
                return None
            found = state.names.get(at.offset)
            return found if found is None or expr[2] == 8 else found.low()
        if kind == "bin" and expr[1] in ("add", "sub") and expr[2] == 8:
            left, right = self._value(state, expr[3]), self._value(state, expr[4])
            if left is None or right is None:
                return None
            if expr[1] == "add" and left.base == CONST:
                left, right = right, left
            if right.base == CONST:
                number = right.offset - (1 << 64) if right.offset >> 63 else right.offset
                return left.plus(number if expr[1] == "add" else -number)
        return None

    # -- what others may change --------------------------------------------------------------------

    def _given(self, state: State, offset: int) -> None:
        low = offset - _REACH
        state.given = low if state.given is None else min(state.given, low)

    def _give_away(self, state: State) -> None:
        """A call: stack addresses in the argument registers are in other hands from now on."""
        for register in self._arch.arguments:
            name = state.names.get(register)
            if name is not None and name.base == STACK:
                self._given(state, name.offset)
        self._forget_given(state)

    def _forget_given(self, state: State) -> None:
        """Slots that others may have changed; never those in which a caller's register is saved."""
        if state.given is not None:
            self._forget_above(state, state.given)

    def _forget_above(self, state: State, lowest: int) -> None:
        for place, name in list(state.names.items()):
            saved = name.base[0] == "entry" and name.base[1] in self._saved and name.offset == 0
            if isinstance(place, int) and place >= lowest and not saved:
                del state.names[place]


def _met(states: list[State], segment: int) -> State:
    """What holds where all of these meet."""
    if len(states) == 1:
        return states[0].copy()
    first, *others = states
    names: dict[Place, Name] = {}
    for place, name in first.names.items():
        found = [state.names.get(place) for state in others]
        if all(other == name for other in found):
            names[place] = name
        elif None not in found:
            names[place] = Name(("meet", segment, place))
    given = [state.given for state in states if state.given is not None]
    return State(names, min(given, default=None))
