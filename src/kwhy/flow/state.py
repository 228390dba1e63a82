"""The symbolic state of one frame, and what an instruction does to it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kwhy.flow.ir import INVERSE, Effect, Expr
from kwhy.flow.terms import (
    Facts,
    Term,
    add,
    assume,
    binary,
    invert,
    is_stack,
    low,
    mask,
    negate,
    parts,
    sext,
    sym,
)

Flags = tuple[str, int, Term, Term]


class Cells(dict[int, tuple[int, Term]]):
    """What lies at byte offsets from one base: size and value. Shared by states, never changed."""

    __slots__ = ("_key", "_parts")

    def key(self) -> frozenset[Any]:
        """The content as a value that compares, worked out once."""
        try:
            return self._key
        except AttributeError:
            self._key: frozenset[Any] = frozenset(self.items())
            return self._key

    def parts(self) -> frozenset[Any]:
        """The terms inside the values, worked out once."""
        try:
            return self._parts
        except AttributeError:
            found = frozenset[Any]().union(*(parts(value) for _, value in self.values()))
            self._parts: frozenset[Any] = found
            return found


Memory = dict[Term, Cells]
EMPTY = Cells()

NO_FLAGS: Flags = ("unknown", 8, 0, 0)


@dataclass(slots=True)
class State:
    """Registers, the memory written or read so far, flags and facts at one point of a path.

    ``memory`` maps a base term to byte offsets, each with size and value; ``epoch`` names the last
    event that may have changed memory nobody here wrote. ``dead``: the path got here only by
    following a pointer that it had found to be NULL. ``facts`` are what the path has tested,
    ``seen`` the values that hits have shown on it.
    """

    frame: int
    registers: dict[str, Term]
    memory: Memory
    facts: Facts
    flags: Flags = NO_FLAGS
    epoch: Any = 0
    dead: bool = False
    seen: Facts = field(default_factory=dict)

    @property
    def witnessed(self) -> Facts:
        """The facts, and the values that hits have shown."""
        return {**self.facts, **self.seen} if self.seen else self.facts

    def copy(self) -> "State":
        """A state to go on with that shares nothing mutable with this one."""
        return State(
            self.frame,
            dict(self.registers),
            dict(self.memory),
            self.facts,
            self.flags,
            self.epoch,
            seen=self.seen,
        )

    def key(self, live: frozenset[str]) -> Any:
        """What makes two states the same for everything that can still happen."""
        return (
            frozenset((r, v) for r, v in self.registers.items() if r in live),
            frozenset((base, cells.key()) for base, cells in self.memory.items() if cells),
            frozenset(self.facts.items()),
            frozenset(self.seen.items()),
            self.flags if "flags" in live else None,
            self.epoch,
        )


def split(address: Term) -> tuple[Term, int]:
    """An address as base term and signed byte offset."""
    if isinstance(address, int):
        return 0, address
    if address[0] == "add":
        offset = address[2]
        return address[1], offset - (1 << 64) if offset >> 63 else offset
    return address, 0


def on_stack(state: State, base: Term) -> bool:
    """Whether a base is this frame's own stack."""
    return is_stack(base) and base[1] == state.frame


def evaluate(state: State, expr: Expr, place: Any) -> Term:
    """The term that an expression stands for in a state; ``place`` names what gets lost."""
    tag = expr[0]
    if tag == "reg":
        value = state.registers.get(expr[1])
        if value is None:
            value = state.registers[expr[1]] = sym("init", state.frame, expr[1])
        return low(expr[2], value)
    if tag == "const":
        return int(expr[1]) & ((1 << 64) - 1)
    if tag == "load":
        return load(state, evaluate(state, expr[1], place), expr[2])
    if tag == "bin":
        return binary(
            expr[1], expr[2], evaluate(state, expr[3], place), evaluate(state, expr[4], place)
        )
    if tag == "un":
        value = evaluate(state, expr[3], place)
        return negate(expr[2], value) if expr[1] == "neg" else invert(expr[2], value)
    if tag == "sext":
        return sext(expr[1], evaluate(state, expr[2], place))
    if tag == "percpu":
        return sym("percpu", evaluate(state, expr[1], place))
    return sym("lost", state.frame, place)


def load(state: State, address: Term, size: int) -> Term:
    """Memory at a term address: what was stored or read there before, else a new term."""
    base, offset = split(address)
    _follow(state, base, offset)
    cells = state.memory.get(base, EMPTY)
    cell = cells.get(offset)
    if cell is not None and cell[0] >= size:
        return low(size, cell[1])
    for start, (length, _) in cells.items():
        if start < offset + size and offset < start + length:
            return sym("lost", state.frame, ("mixed", offset, state.epoch))
    value: Term = sym("mem", address, size, (state.frame, state.epoch))
    state.memory[base] = Cells({**cells, offset: (size, value)})
    return value


STRUCTURE = 1 << 20
"""Offsets up to this are into what a pointer points to; larger ones are places of their own, of a
table that the "base" is an index into."""


def _follow(state: State, base: Term, offset: int) -> None:
    """Note that a pointer was followed without a fault: it is not NULL, nor an error pointer."""
    if not isinstance(base, tuple) or abs(offset) > STRUCTURE or is_stack(base):
        return
    if base[0] in ("ret", "init") or (base[0] == "mem" and base[2] == 8):
        facts = assume(state.facts, "ugt", base, 4095, 8)
        facts = facts if facts is None else assume(facts, "ult", base, -4095 & mask(8), 8)
        if facts is None:
            state.dead = True
        else:
            state.facts = facts


def store(state: State, address: Term, size: int, value: Term, place: Any) -> None:
    """Write memory: exact cells change, whatever may overlap is forgotten."""
    base, offset = split(address)
    _follow(state, base, offset)
    if isinstance(base, tuple) and base[0] == "lost":
        forget_memory(state, place)
        return
    kept = Cells(
        (start, cell)
        for start, cell in state.memory.get(base, EMPTY).items()
        if not (start < offset + size and offset < start + cell[0])
    )
    kept[offset] = (size, low(size, value))
    state.memory[base] = kept
    if not on_stack(state, base):
        # Another pointer may reach the same object; frames do not alias their own stack that way.
        for other in list(state.memory):
            if other != base and not is_stack(other) and not isinstance(other, int):
                del state.memory[other]
        _renew(state, place)


def forget_memory(state: State, place: Any, escaped: list[tuple[Term, int, int]] = []) -> None:  # noqa: B006
    """Forget all memory but stacks; of stacks, what lies in ``escaped`` (base, offset, size)."""
    for base in list(state.memory):
        if not is_stack(base):
            del state.memory[base]
            continue
        holes = [(offset, size) for other, offset, size in escaped if other == base]
        if holes:
            state.memory[base] = Cells(
                (start, cell)
                for start, cell in state.memory[base].items()
                if not any(start + cell[0] > at and start < at + size for at, size in holes)
            )
    _renew(state, place)


@functools.lru_cache(maxsize=1 << 17)
def _refers(term: Any, epoch: Any) -> bool:
    return any(part[0] == "mem" and part[3] == epoch for part in parts(term))


def _renew(state: State, place: Any) -> None:
    """Start a new epoch; if its name was in use (a loop), lose what still refers to the old one."""
    state.epoch = place
    tagged = (state.frame, place)

    def stale(term: Any) -> bool:
        return isinstance(term, tuple) and _refers(term, tagged)

    def lasting(term: Any, _known: Any) -> bool:
        return not stale(term)

    for name, value in state.registers.items():
        if stale(value):
            state.registers[name] = sym("lost", state.frame, ("old", place, name))
    for base, cells in state.memory.items():
        if any(stale(value) for _, value in cells.values()):
            state.memory[base] = Cells(
                (
                    offset,
                    (size, sym("lost", state.frame, ("old", place, offset)))
                    if stale(value)
                    else (size, value),
                )
                for offset, (size, value) in cells.items()
            )
    state.facts = keep(state.facts, lasting)
    state.seen = keep(state.seen, lasting)


def keep(facts: Facts, wanted: Callable[[Any, Any], bool]) -> Facts:
    """The facts that are ``wanted``; the very same object when that is all of them."""
    kept = {key: value for key, value in facts.items() if wanted(key, value)}
    return kept if len(kept) != len(facts) else facts


def apply(state: State, effects: tuple[Effect, ...], place: Any) -> None:
    """Carry out an instruction's effects on a state, in order; ``place`` names what gets lost."""
    for effect in effects:
        tag = effect[0]
        if tag == "set":
            _, name, size, expr = effect
            value = evaluate(state, expr, (place, name))
            if size >= 4:
                state.registers[name] = low(size, value)
            else:
                old = evaluate(state, ("reg", name, 8), place)
                keep = binary("and", 8, old, ~((1 << 8 * size) - 1))
                state.registers[name] = (
                    low(size, value) if keep == 0 else _merge(old, low(size, value), size)
                )
        elif tag == "store":
            store(
                state,
                evaluate(state, effect[1], place),
                effect[2],
                evaluate(state, effect[3], (place, "store")),
                place,
            )
        elif tag == "flags":
            _, kind, size, a, b = effect
            if kind == "unknown":
                state.flags = NO_FLAGS
            else:
                state.flags = (
                    kind,
                    size,
                    evaluate(state, a, (place, "a")),
                    evaluate(state, b, (place, "b")),
                )
        elif tag == "swap":
            _, where, size, name = effect
            address = evaluate(state, where, place)
            old = load(state, address, size)
            store(state, address, size, evaluate(state, ("reg", name, size), place), place)
            state.registers[name] = low(size, old)
        elif tag in ("copy", "fill"):
            _move(state, effect, place)
        elif tag == "forget":
            for name in effect[1]:
                state.registers[name] = sym("lost", state.frame, (place, name))


MAX_UNITS = 64
"""Units of one string instruction that are followed one by one: struct copies and initialisers."""


def _move(state: State, effect: Effect, place: Any) -> None:
    """``copy`` and ``fill``: exactly while the count is known and small."""
    tag, where, what, times, unit = effect
    to = evaluate(state, where, place)
    source = evaluate(state, what, place)
    count = evaluate(state, times, place)
    if isinstance(count, int) and count <= MAX_UNITS:
        for at in range(0, count * unit, unit):
            value = load(state, add(source, at), unit) if tag == "copy" else source
            store(state, add(to, at), unit, value, (place, at))
        return
    base, offset = split(to)
    forget_memory(state, place, [(base, offset, 1 << 20)])


def _merge(old: Term, value: Term, size: int) -> Term:
    """A partial write: the new low bytes under the old upper ones."""
    if isinstance(old, int) and isinstance(value, int):
        return (old & ~((1 << 8 * size) - 1)) | value
    if isinstance(old, int) and old >> (8 * size) == 0:
        return value
    return sym("join", size, value, old)


Condition = tuple[str, Term, Term, int]


def decide(flags: Flags, condition: str) -> Condition | None:
    """The comparison that a condition code means under the last flag setter; None if unknown."""
    kind, size, a, b = flags
    if kind == "cmp":
        if condition in ("eq", "ne", "ult", "uge", "ule", "ugt", "slt", "sge", "sle", "sgt"):
            return condition, a, b, size
        if condition in ("neg", "pos"):
            difference = binary("sub", size, a, b)
            return ("slt" if condition == "neg" else "sge"), difference, 0, size
        return None
    if kind in ("logic", "result", "add"):
        value = binary("add", size, a, b) if kind == "add" else a
        if condition in ("eq", "ne"):
            return condition, value, 0, size
        if condition in ("neg", "pos"):
            return ("slt" if condition == "neg" else "sge"), value, 0, size
        if kind == "logic":
            # and/or/xor/test clear carry and overflow (Intel SDM vol. 2).
            return {
                "ult": ("ne", 0, 0, size),
                "uge": ("eq", 0, 0, size),
                "ule": ("eq", value, 0, size),
                "ugt": ("ne", value, 0, size),
                "slt": ("slt", value, 0, size),
                "sge": ("sge", value, 0, size),
                "sle": ("sle", value, 0, size),
                "sgt": ("sgt", value, 0, size),
                "overflow": ("ne", 0, 0, size),
                "nooverflow": ("eq", 0, 0, size),
            }.get(condition)
        if kind == "add" and condition in ("ult", "uge"):
            return condition, value, a, size
        return None
    if kind == "bit" and condition in ("ult", "uge"):
        if isinstance(b, int):
            bit = binary("and", size, a, 1 << (b & (8 * size - 1)))
        else:
            bit = binary("and", size, binary("shr", size, a, b), 1)
        return ("ne" if condition == "ult" else "eq"), bit, 0, size
    return None


def assuming(facts: Facts, condition: Condition | None, inverse: bool) -> Facts | None:
    """The facts if a condition holds (or, ``inverse``, does not); None if that cannot be."""
    if condition is None:
        return facts
    op, a, b, size = condition
    if inverse:
        op = INVERSE[op]
    return assume(facts, op, a, b, size)
