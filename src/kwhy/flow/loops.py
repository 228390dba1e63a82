"""The loops of a function, and what the way out of one depends on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import networkx as nx

from kwhy.arch import Arch
from kwhy.flow.cfg import Function, Segment, uses_of
from kwhy.flow.ir import Effect, Expr, Insn

MAX_STEPS = 20_000


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop by the starts of its segments; every round passes ``head``.

    ``exits`` are edges (segment inside, segment outside). ``natural`` is false for a knot of code
    that can be entered in several places.
    """

    head: int
    body: frozenset[int]
    exits: tuple[tuple[int, int], ...]
    natural: bool = True


@dataclass(frozen=True, slots=True)
class Load:
    """A read of memory: at which instruction, where (an expression), and how many bytes."""

    at: int
    address: Expr
    size: int


@dataclass(frozen=True, slots=True)
class Result:
    """What the call that ends before ``site`` returned. ``target`` None: an indirect call."""

    site: int
    target: int | None


@dataclass(frozen=True, slots=True)
class Sources:
    """What a value inside a loop comes from.

    ``carried``: registers at the loop's head that a round may change; ``fixed``: those that none
    changes; ``unknown``: instructions whose effect is not modelled.
    """

    carried: frozenset[str]
    fixed: frozenset[str]
    loads: frozenset[Load]
    results: frozenset[Result]
    unknown: frozenset[int]


def graph(function: Function) -> "nx.DiGraph[int]":
    """Segments and the ways between them."""
    out: nx.DiGraph[int] = nx.DiGraph()
    for start, segment in function.segments.items():
        out.add_node(start)
        for onward in segment.successors():
            if onward in function.segments:
                out.add_edge(start, onward)
    return out


def loops(function: Function) -> list[Loop]:
    """All loops, the smallest first; natural ones with the same head are one."""
    ways = graph(function)
    if function.entry not in ways:
        return []
    reached = nx.descendants(ways, function.entry) | {function.entry}
    ways = ways.subgraph(reached).copy()
    parent = nx.immediate_dominators(ways, function.entry)
    bodies: dict[int, set[int]] = {}
    for tail, head in ways.edges:
        if head in _dominators(parent, tail, function.entry):
            bodies.setdefault(head, {head}).update(_body(ways, head, tail))
    out = [_loop(ways, head, body) for head, body in bodies.items()]
    covered = {frozenset(body) for body in bodies.values()}
    for knot in nx.strongly_connected_components(ways):
        entered = {to for at, to in ways.edges if to in knot and at not in knot}
        if len(knot) > 1 and len(entered) > 1 and frozenset(knot) not in covered:
            out.append(_loop(ways, min(entered), set(knot), natural=False))
    return sorted(out, key=lambda loop: (len(loop.body), loop.head))


def _dominators(parent: dict[int, int | None], node: int, entry: int) -> Iterator[int]:
    """``node`` and all that every way to it passes."""
    while True:
        yield node
        above = parent.get(node)
        if node == entry or above is None or above == node:
            return
        node = above


def _body(ways: "nx.DiGraph[int]", head: int, tail: int) -> set[int]:
    """What reaches ``tail`` without passing ``head``."""
    body = {head}
    todo = [tail]
    while todo:
        node = todo.pop()
        if node not in body:
            body.add(node)
            todo.extend(ways.predecessors(node))
    return body


def _loop(ways: "nx.DiGraph[int]", head: int, body: set[int], natural: bool = True) -> Loop:
    exits = sorted((at, to) for at in body for to in ways.successors(at) if to not in body)
    return Loop(head, frozenset(body), tuple(exits), natural)


def leaves(function: Function, start: int, to: int, other: int) -> bool | None:
    """Whether the way from a segment to another leaves the smallest loop around it, in which
    ``other`` would have gone on; False when it is the reverse, None when neither."""
    for loop in loops(function):
        if start in loop.body:
            inside = to in loop.body, other in loop.body
            return inside[1] if inside[0] != inside[1] else None
    return None


def segment_at(function: Function, address: int) -> Segment | None:
    """The segment that holds the instruction at ``address``."""
    for segment in function.segments.values():
        if segment.insns and segment.insns[0].address <= address < segment.last.end:
            return segment
    return None


def sources(function: Function, arch: Arch, loop: Loop, segment: Segment) -> Sources:
    """What decides the turn at the end of ``segment``, followed back through the loop."""
    return _Slice(function, arch, loop).of(segment)


class _Slice:
    def __init__(self, function: Function, arch: Arch, loop: Loop) -> None:
        self.segments = {start: function.segments[start] for start in loop.body}
        self.loop = loop
        self.arch = arch
        self.before: dict[int, list[int]] = {start: [] for start in self.segments}
        for start, segment in self.segments.items():
            for onward in segment.successors():
                if onward in self.before:
                    self.before[onward].append(start)
        self.changed = {name for each in self.segments.values() for name in self._changes(each)}
        self.carried: set[str] = set()
        self.fixed: set[str] = set()
        self.loads: set[Load] = set()
        self.results: set[Result] = set()
        self.unknown: set[int] = set()

    def _changes(self, segment: Segment) -> set[str]:
        names = {name for insn in segment.insns for name in insn.defines}
        return names | self.arch.clobbered if segment.kind == "call" else names

    def of(self, segment: Segment) -> Sources:
        wanted = {"flags"} if segment.kind in ("branch", "select") else set()
        for expr in (segment.index, segment.through):
            if expr is not None:
                wanted |= uses_of(expr)
        todo = [(segment.start, len(segment.insns) - 1, name) for name in sorted(wanted)]
        seen = set(todo)
        for _ in range(MAX_STEPS):
            if not todo:
                break
            for item in self._step(*todo.pop()):
                if item not in seen:
                    seen.add(item)
                    todo.append(item)
        else:
            self.unknown.add(segment.start)
        return Sources(
            frozenset(self.carried), frozenset(self.fixed), frozenset(self.loads),
            frozenset(self.results), frozenset(self.unknown),
        )  # fmt: skip

    def _step(self, start: int, index: int, name: str) -> list[tuple[int, int, str]]:
        """Where the value of ``name`` before instruction ``index`` was made, one stretch back."""
        segment = self.segments[start]
        for number in range(index - 1, -1, -1):
            insn = segment.insns[number]
            if name in insn.defines:
                return [(start, number, used) for used in self._made(insn, name)]
        if start == self.loop.head:
            if name in self.changed:
                self.carried.add(name)
            else:
                self.fixed.add(name)
                return []
        onward = []
        for before in self.before[start]:
            earlier = self.segments[before]
            if earlier.kind == "call":
                if name == self.arch.result:
                    self.results.add(Result(earlier.last.end, earlier.target))
                    continue
                if name in self.arch.clobbered or name == "flags":
                    self.unknown.add(earlier.last.address)
                    continue
            last = len(earlier.insns)
            onward.append((before, last, name))
        return onward

    def _made(self, insn: Insn, name: str) -> set[str]:
        """The registers that the value of ``name`` is made from; notes the memory."""
        used: set[str] = set()
        for effect in (*insn.effects, *insn.otherwise):
            for expr in _makes(effect, name):
                if expr is None:
                    self.unknown.add(insn.address)
                    continue
                used |= uses_of(expr)
                for address, size in loads_in(expr):
                    self.loads.add(Load(insn.address, address, size))
        return used | ({"flags"} if insn.kind == "select" else set())


def _makes(effect: Effect, name: str) -> Iterable[Expr | None]:
    """The expressions that an effect puts into ``name``; None for one that is not modelled."""
    match effect:
        case ("set", register, size, expr) if register == name:
            return [expr, ("reg", name, 8)] if size < 4 else [expr]
        case ("flags", kind, _, a, b) if name == "flags":
            return [None] if kind == "unknown" else [a, b]
        case ("forget", names) if name in names:
            return [None]
        case ("swap", address, size, register) if register == name:
            return [("load", address, size)]
    return []


def loads_in(expr: Expr) -> Iterator[tuple[Expr, int]]:
    """The reads of memory in an expression: address and size."""
    if expr[0] == "load":
        yield expr[1], expr[2]
    for part in expr[1:]:
        if isinstance(part, tuple) and part:
            yield from loads_in(part)


def evaluate(expr: Expr, registers: dict[str, int]) -> int | None:
    """The value of an expression without memory; None if it needs more than ``registers``.

    Among them ``percpu`` is the processor's own base.
    """
    match expr:
        case ("const", value):
            return int(value)
        case ("reg", name, size) if name in registers:
            return registers[name] & ((1 << 8 * int(size)) - 1)
        case ("percpu", inner) if "percpu" in registers:
            place = evaluate(inner, registers)
            return None if place is None else place + registers["percpu"] & (1 << 64) - 1
        case ("bin", op, size, a, b):
            left, right = evaluate(a, registers), evaluate(b, registers)
            if left is None or right is None:
                return None
            made = {
                "add": left + right, "sub": left - right, "mul": left * right,
                "and": left & right, "or": left | right, "xor": left ^ right,
            }.get(op)  # fmt: skip
            return None if made is None else int(made) & ((1 << 8 * size) - 1)
    return None
