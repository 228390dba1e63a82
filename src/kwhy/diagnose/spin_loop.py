"""What a loop does while it is watched: its rounds, its branches, and what its end depends on."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from kwhy.arch import Arch
from kwhy.diagnose.spin_frames import Place
from kwhy.diagnose.spin_watch import Seen, Watcher
from kwhy.emulate.limits import SLEEPS, STOPS
from kwhy.flow.cfg import Code, Function, Segment
from kwhy.flow.loops import Loop, Result, Sources, loops, segment_at, sources
from kwhy.record.samples import Sample

How = Literal["constant", "cycle", "counter", "varying"]

MAX_WATCHED = 48  # addresses in one loop
MAX_CYCLE = 16  # different values that still are a cycle
ROUNDS = 3  # how often a cycle must have come around


@dataclass(frozen=True, slots=True)
class Values:
    """What something was, round by round. ``step``: of a counter, per round."""

    how: How
    first: int
    distinct: tuple[int, ...] = ()
    step: int = 0
    last: int = 0


@dataclass(slots=True)
class Watched:
    """A loop of a function and what was counted of it; hits by address of an instruction.

    ``sleeps``: the starts of its segments that call what gives the processor away until woken.
    """

    function: Function
    loop: Loop
    place: Place
    inside: int
    hits: dict[int, Seen] = field(default_factory=dict)
    sleeps: frozenset[int] = frozenset()

    def count(self, address: int) -> int | None:
        """Hits of a breakpoint at an address, None where there was none."""
        seen = self.hits.get(address)
        return None if seen is None or seen.error is not None or seen.offline else seen.count

    def passed(self, address: int) -> bool:
        """Whether an address was passed, on the target or offline."""
        seen = self.hits.get(address)
        return seen is not None and seen.count > 0

    def source(self, address: int) -> str:
        """What told of the passes of an address."""
        return self.hits[address].source

    def never(self, address: int) -> bool:
        """Whether an address was watched and not passed."""
        seen = self.hits.get(address)
        return seen is not None and seen.error is None and not seen.count and not seen.lost

    def alive(self) -> list[Segment]:
        """The segments of the loop that a round can reach by ways that were not never taken."""
        found: dict[int, Segment] = {}
        todo = [self.loop.head]
        while todo:
            start = todo.pop()
            if start in found or start not in self.loop.body or self.never(start):
                continue
            found[start] = self.function.segments[start]
            todo.extend(found[start].successors())
        return [found[start] for start in sorted(found)]

    def ways_out(self) -> list[tuple[int, int]]:
        """The edges that lead from where it goes round to the outside or to sleep, or to code that
        it never reached and that leads there."""
        alive = {segment.start for segment in self.alive()}
        onward = {at: self.function.segments[at].successors() for at in self.loop.body}
        escaping = {to for at in onward for to in onward[at] if to not in self.loop.body}
        escaping |= self.sleeps - alive
        while more := {
            at for at in self.loop.body - alive - escaping if escaping & set(onward[at])
        }:
            escaping |= more
        return [(at, to) for at in sorted(alive) for to in onward[at] if to in escaping]

    @property
    def rounds(self) -> list[Sample]:
        """The registers at the loop's head, round by round as far as they were recorded."""
        seen = self.hits.get(self.loop.head)
        return seen.samples if seen is not None else []

    def left(self) -> bool:
        """Whether the loop was left, on the target or offline."""
        back = [] if self.place.back is None else [self.place.back]
        return any(self.passed(to) for to in [*(to for _, to in self.loop.exits), *back])

    def stayed(self) -> bool:
        """Whether all its ways out were watched and none was taken, on the target or offline."""
        return bool(self.rounds) and all(self.never(to) for _, to in self.loop.exits)

    def exit_hits(self) -> int | None:
        """How often the loop was left; None when that could not be watched."""
        counts = [self.count(to) for _, to in self.loop.exits]
        if self.place.back is not None:
            counts.append(self.count(self.place.back))
        known = [count for count in counts if count is not None]
        return sum(known) if known else None


def candidates(function: Function, place: Place) -> list[tuple[Loop, int]]:
    """Loops that hold samples, with how many: those with the most first, the smallest first."""
    held = [segment_at(function, address) for address in place.at]
    starts = [segment.start for segment in held if segment is not None]
    found = [(loop, sum(start in loop.body for start in starts)) for loop in loops(function)]
    return sorted(
        ((loop, count) for loop, count in found if count),
        key=lambda pair: (-pair[1], len(pair[0].body)),
    )


def watch(
    code: Code, watcher: Watcher, function: Function, place: Place, seconds: float
) -> Watched | None:
    """The smallest loop of a function that holds the samples at ``place`` in it and is not left
    while watched."""
    best: Watched | None = None
    for loop, inside in candidates(function, place)[:4]:
        if best is not None and inside < best.inside:
            break
        watched = Watched(function, loop, place, inside, sleeps=_sleeps(code, function, loop))
        ways = [to for _, to in loop.exits]
        first = [loop.head, *([place.back] if place.back is not None else []), *ways]
        watched.hits = watcher.breakpoints(list(dict.fromkeys(first))[:MAX_WATCHED], seconds)
        best = watched
        if not any(watched.passed(to) for to in ways):
            break
    if best is not None:
        more = [address for address in _turns(best) if address not in best.hits]
        more = more[: max(0, MAX_WATCHED - len(best.hits))]
        best.hits.update(watcher.breakpoints(more, seconds))
    return best


def _sleeps(code: Code, function: Function, loop: Loop) -> frozenset[int]:
    calls = {start: function.segments[start].target for start in loop.body}
    return frozenset(
        start
        for start, target in calls.items()
        if target is not None and STOPS.get(code.name(code.resolve(target))) == SLEEPS
    )


def _turns(watched: Watched) -> list[int]:
    """Where calls in the loop come back, and where its branches lead."""
    back, ways = [], []
    for start in sorted(watched.loop.body):
        segment = watched.function.segments[start]
        if segment.kind == "call":
            back.append(segment.last.end)
        elif segment.kind in ("branch", "switch"):
            ways.extend(segment.successors())
    return list(dict.fromkeys([*back, *ways]))


def classify(values: Sequence[int]) -> Values | None:
    """How a number behaved over the rounds; None without any."""
    if not values:
        return None
    distinct = tuple(dict.fromkeys(values))
    first, last = values[0], values[-1]
    if len(distinct) == 1:
        return Values("constant", first, distinct, 0, last)
    steps = [_signed(b - a) for a, b in itertools.pairwise(values)]
    if all(step > 0 for step in steps) or all(step < 0 for step in steps):
        return Values("counter", first, (), min(steps, key=abs), last)
    if len(distinct) <= MAX_CYCLE and len(values) >= ROUNDS * len(distinct):
        return Values("cycle", first, distinct, 0, last)
    return Values("varying", first, distinct[:MAX_CYCLE], 0, last)


def recurs(values: Sequence[int]) -> bool:
    """Whether a number took no values later that it had not taken before, as that of an inner loop
    that begins anew each time."""
    half = len(values) // 2
    return half >= MAX_CYCLE and set(values[half:]) <= set(values[:half])


def _signed(value: int) -> int:
    return (value + (1 << 63) & (1 << 64) - 1) - (1 << 63)


def registers(watched: Watched, arch: Arch) -> dict[str, Values]:
    """Each general register at the loop's head."""
    rounds = watched.rounds
    out = {}
    for name in arch.registers:
        found = classify([s.registers[name] for s in rounds if name in s.registers])
        if found is not None:
            out[name] = found
    return out


def never_taken(watched: Watched, segment: Segment) -> bool | None:
    """Which way a branch never went: True the jump, False straight on; None: both, or unseen."""
    assert segment.target is not None and segment.next is not None
    jump, on = watched.never(segment.target), watched.never(segment.next)
    if jump == on:
        return None
    return jump


def decisive(watched: Watched, arch: Arch) -> list[tuple[Segment, Sources]]:
    """The turns that lead out of the loop, and what decides each."""
    out = []
    leaving = {at for at, _ in watched.ways_out()}
    for segment in watched.alive():
        if segment.start in leaving and segment.kind in ("branch", "switch"):
            out.append((segment, sources(watched.function, arch, watched.loop, segment)))
    return out


def result_values(watched: Watched, arch: Arch, site: int, size: int) -> list[int]:
    """What a call that comes back at ``site`` returned, its low ``size`` bytes."""
    seen = watched.hits.get(site)
    mask = (1 << 8 * size) - 1
    return [s.registers[arch.result] & mask for s in seen.samples] if seen is not None else []


def result_size(watched: Watched, arch: Arch, site: int) -> int:
    """How many bytes of a call's result the loop looks at (8 when that is not clear)."""
    segment = watched.function.segments.get(site)
    for insn in segment.insns if segment is not None else ():
        for effect in insn.effects:
            if effect[0] == "flags" and effect[3][:2] == ("reg", arch.result):
                return int(effect[3][2])
        if arch.result in insn.defines:
            break
    return 8


__all__ = [
    "Result",
    "Values",
    "Watched",
    "candidates",
    "classify",
    "decisive",
    "never_taken",
    "recurs",
    "registers",
    "result_size",
    "result_values",
    "watch",
]
