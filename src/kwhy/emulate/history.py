"""An execution read again: which call, which branch, which operands.

The machine tracked what ran; here its calls are told apart, and for any step in question the
effects of the instructions behind it are worked out on terms (:mod:`kwhy.flow.terms`), whose
concrete values are known throughout: from registers at block starts, and from each memory access.
So a branch can be told as ``head->read != commit->page`` with both values, and every value knows
the step that made it. Only what is asked for is worked out.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from kwhy.arch import Arch
from kwhy.emulate.effects import UNKNOWN_FLAGS, Effects, effects_of
from kwhy.emulate.frames import Back, Called, Frame, Frames
from kwhy.emulate.machine import GENERAL
from kwhy.emulate.steps import FLAGS, Steps
from kwhy.emulate.track import Track
from kwhy.flow.cfg import Code, uses_of
from kwhy.flow.ir import Expr, Insn
from kwhy.flow.state import Condition, Flags, decide
from kwhy.flow.terms import Term, add, binary, mask, signed, sym

_MASK = (1 << 64) - 1
_DEEP = 48
"""Instructions behind one value that are followed; terms end before (flow.terms.MAX_DEPTH)."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A conditional jump (or move) as it went, at a step in a frame."""

    step: int
    frame: int
    address: int
    kind: str
    taken: bool
    condition: Condition | None
    target: int
    after: int | None


@dataclass(slots=True)
class _Words:
    """What :class:`kwhy.diagnose.words.Words` asks of a function."""

    name: str
    entry: int
    segments: dict[int, Any] = field(default_factory=dict)


class Branches(Mapping[int, Branch]):
    """The branches of a history by step, each worked out when it is asked for."""

    def __init__(self, history: "History") -> None:
        self._history = history
        self._known: dict[int, Branch] = {}
        self._steps = history.steps_of.branches
        self._all = frozenset(self._steps)

    def __getitem__(self, step: int) -> Branch:
        if step not in self._all:
            raise KeyError(step)
        if step not in self._known:
            self._known[step] = self._history.branch(step)
        return self._known[step]

    def __contains__(self, step: object) -> bool:
        return step in self._all

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


class History:
    """The frames and branches of one tracked run; for each step what its values depend on.

    ``values`` maps a term to its concrete value.
    """

    def __init__(
        self,
        code: Code,
        track: Track,
        read: Callable[[int, int], bytes],
        result: int | None = None,
    ) -> None:
        """``read`` gives up to so many bytes of code; ``result`` is what the run returned."""
        self.code, self.arch, self.track = code, code.arch, track
        self.steps_of = Steps(track, code.arch, read)
        found = Frames(code, self.steps_of, result)
        self.all_frames, self._frame_of_block = found.all, found.of_block
        self.values: dict[Any, int] = {}
        self._effects: dict[int, Effects] = {}
        self._shallow: dict[int, Effects] = {}
        self._depth = 0
        self._cut_short = False
        self.frames: dict[int, tuple[Any, _Words, list[Called]]] = {
            f.number: (None, _Words(f.name, f.entry), f.calls) for f in self.all_frames
        }
        """Frames as the namer of terms wants them."""

    # -- what there is -----------------------------------------------------------------------------

    @property
    def steps(self) -> list[int]:
        """The address of each step's instruction."""
        return self.steps_of.addresses

    @cached_property
    def frame_at(self) -> list[int]:
        """The frame of each step."""
        found: list[int] = self.steps_of.of_blocks(self._frame_of_block).tolist()
        return found

    @cached_property
    def branches(self) -> Branches:
        """Every conditional jump and move, by step."""
        return Branches(self)

    @cached_property
    def branches_by_frame(self) -> dict[int, list[int]]:
        """The steps of each frame's branches; {} of straight-line code."""
        if not self.branches._steps:
            return {}
        steps = np.array(self.branches._steps, np.int64)
        frames = self.steps_of.of_blocks(self._frame_of_block)[steps]
        order = np.argsort(frames, kind="stable")
        known, begin = np.unique(frames[order], return_index=True)
        parts = np.split(steps[order], begin[1:])
        return {int(f): part.tolist() for f, part in zip(known, parts, strict=True)}

    def insn(self, step: int) -> Insn | None:
        """The instruction of a step."""
        return self.steps_of.insn(step)

    def value(self, term: Term) -> int | None:
        """The concrete value of a term, None where it was lost."""
        if isinstance(term, int):
            return term
        found = self.values.get(term)
        if found is not None:
            return found
        tag = term[0]
        if tag == "init":
            return self.all_frames[term[1]].inputs.get(term[2])
        if tag in ("low", "sext", "neg", "not", "add"):
            inner = self.value(term[1] if tag == "add" else term[2])
            if inner is None:
                return None
            if tag == "add":
                return (inner + int(term[2])) & _MASK
            if tag == "sext":
                return int(signed(inner, term[1])) & _MASK
            changed = {"low": inner, "neg": -inner, "not": ~inner}[tag] & mask(term[1])
            return int(changed)
        if tag == "join":
            new, old = self.value(term[2]), self.value(term[3])
            keep = _MASK ^ mask(term[1])
            return None if new is None or old is None else (old & keep) | new
        if tag == "bin":
            a, b = self.value(term[3]), self.value(term[4])
            if a is None or b is None:
                return None
            result = binary(term[1], term[2], a, b)
            return result if isinstance(result, int) else None
        return None

    # -- which steps made a value ------------------------------------------------------------------

    def maker(self, name: str, step: int) -> int | None:
        """The step that made what a register holds before ``step``; None: it was so at the start.

        A register that functions keep was made in the frame or in those around it; one that a call
        may change (and the flags) wherever it was set last.
        """
        if name in self.arch.clobbered or name not in self.arch.registers:
            return self.steps_of.maker(name, step)
        number: int | None = self.frame_at[min(step, len(self.frame_at) - 1)]
        while number is not None:
            found = self.steps_of.maker(name, step, self._own(number))
            if found is not None:
                return found
            frame = self.all_frames[number]
            number, step = frame.parent, frame.by + 1
        return None

    def _own(self, frame: int) -> tuple[int, Any]:
        """The blocks of a frame, without those of its callees."""
        return frame, self._blocks_by_frame[frame]

    def blocks_after(self, step: int, count: int) -> list[int]:
        """The steps at which the next blocks began in the same frame."""
        own = self._blocks_by_frame[self.frame_at[step]]
        first = int(np.searchsorted(own, self.steps_of.place(step)[0], side="right"))
        return [int(self.steps_of.starts[number]) for number in own[first : first + count]]

    @cached_property
    def _blocks_by_frame(self) -> list[Any]:
        order = np.argsort(self._frame_of_block, kind="stable")
        counts = np.bincount(self._frame_of_block, minlength=len(self.all_frames))
        return np.split(order, np.cumsum(counts)[:-1])

    def result_step(self, frame: Frame) -> int | None:
        """The step that made a frame's result."""
        return self.steps_of.maker(self.arch.result, frame.end)

    def data(self, step: int) -> tuple[int, ...]:
        """The steps that made the values which a step used."""
        insn = self.steps_of.insn(step)
        values, _ = self._used(insn)
        found = {self.maker(name, step) for name in values} - {None}
        if insn.kind not in ("return", "call"):
            before = self.steps_of.first_access(step)
            for access in self.steps_of.accesses(step):
                if not access.write:
                    for write in self.steps_of.writers(access.address, access.size, before):
                        found.add(self.steps_of.access_step(write.number))
        return tuple(sorted(each for each in found if each is not None))

    def places(self, step: int) -> tuple[int, ...]:
        """The steps that made the addresses which a step used."""
        _, places = self._used(self.steps_of.insn(step))
        found = {self.maker(name, step) for name in places}
        return tuple(sorted(each for each in found if each is not None))

    def given(self, step: int) -> set[str]:
        """The registers which a step used as they were at the start; what only stays in the upper
        part of one is none of its own making."""
        insn = self.steps_of.insn(step)
        values, places = self._used(insn)
        used: set[str] = set()
        kept: set[str] = set()
        for effect in (*insn.effects, *insn.otherwise):
            if effect[0] == "set" and effect[2] < 4:
                kept.add(effect[1])
                used |= uses_of(effect[3])
        names = (values | places) - (kept - used)
        return {name for name in names if self.maker(name, step) is None}

    def asked(self, step: int) -> tuple[int, ...]:
        """The comparison that a branch or conditional move asked."""
        asks = self.steps_of.insn(step).kind in ("branch", "select")
        flags = self.steps_of.maker(FLAGS, step) if asks else None
        return () if flags is None else (flags,)

    def _used(self, insn: Insn) -> tuple[set[str], set[str]]:
        values, places = _used(insn, self.arch)
        if any(effect[0] == "forget" for effect in insn.effects):
            values |= self.arch.reads(self.steps_of.bytes_of(insn), insn.address)
        return values, places

    # -- terms -------------------------------------------------------------------------------------

    def branch(self, step: int) -> Branch:
        """How the conditional jump or move at a step went, and what it asked."""
        insn = self.steps_of.insn(step)
        condition = decide(self.flags(step), insn.condition)
        jumped = self._jumped(step, insn)
        taken = bool(self.holds(condition)) if jumped is None else jumped
        return Branch(
            step, self.frame_at[step], insn.address, insn.kind, taken, condition,
            insn.target or insn.end, self._after(step),
        )  # fmt: skip

    def taken(self, step: int) -> bool:
        """Whether the jump or move of a branch was made; cheaper than the whole ``branch``."""
        jumped = self._jumped(step, self.steps_of.insn(step))
        return self.branches[step].taken if jumped is None else jumped

    def _jumped(self, step: int, insn: Insn) -> bool | None:
        """Whether a jump was made; None of a move, which shows only in what it moved."""
        return self._after(step) == insn.target if insn.kind == "branch" else None

    def _after(self, step: int) -> int | None:
        return self.steps[step + 1] if step + 1 < self.steps_of.count else None

    def flags(self, step: int) -> Flags:
        made = self.steps_of.maker(FLAGS, step)
        return UNKNOWN_FLAGS if made is None else self.did(made).flags or UNKNOWN_FLAGS

    def register(self, name: str, step: int, frame: Frame) -> Term:
        """A register before ``step``, as ``frame`` (which that step is in, or follows) sees it."""
        if name == self.arch.stack:
            return self._stack_pointer(step, frame)
        made = self.steps_of.maker(name, step, self._own(frame.number))
        if made is not None and made < frame.begin:
            made = None
        if name in self.arch.clobbered:
            for back in reversed(frame.backs):
                if back.step > step:
                    continue
                if made is not None and back.step <= made:
                    break
                term = self._returned(name, back, frame)
                if term is not None:
                    return term
        if made is None:
            return sym("init", frame.number, name)
        term = self.did(made).registers.get(name)
        if term is None:
            term = sym("lost", frame.number, (made, name))
        return self._valued(term, name, made, step, frame)

    def _valued(self, term: Term, name: str, made: int, step: int, frame: Frame) -> Term:
        """The same term; its value is known from a block that began since it was made."""
        if isinstance(term, tuple) and self.value(term) is None:
            number, _ = self.steps_of.place(min(step, self.steps_of.count - 1))
            begin = int(self.steps_of.starts[number])
            if made < begin <= step and self._frame_of_block[number] == frame.number:
                self.values[term] = int(self.track.registers[number, GENERAL.index(name)])
        return term

    def _stack_pointer(self, step: int, frame: Frame) -> Term:
        """The stack pointer, counted from the frame's entry: it is known at each block's start."""
        name = self.arch.stack
        number, at = self.steps_of.place(min(step, self.steps_of.count - 1))
        made = self.steps_of.maker(name, step, self._own(frame.number)) if at else None
        begin = int(self.steps_of.starts[number])
        if made is not None and made >= begin:
            return self.did(made).registers[name]
        here = int(self.track.registers[number, GENERAL.index(name)])
        return add(sym("init", frame.number, name), here - frame.inputs[name])

    def _returned(self, name: str, back: Back, frame: Frame) -> Term | None:
        """What a call left in a register, None where it left it alone."""
        callee: Frame | None = self.all_frames[back.callee]
        term: Term = 0
        step = back.step
        while callee is not None and callee.number != frame.number:
            term = self.register(name, step, callee)
            if term != sym("init", callee.number, name):
                break
            step = callee.by + 1
            callee = self.all_frames[callee.parent] if callee.parent is not None else None
        else:
            return None
        if name == self.arch.result:
            term = sym("ret", frame.number, back.call)
        if isinstance(term, tuple) and self.value(term) is None:
            number, _ = self.steps_of.place(back.step)
            self.values[term] = int(self.track.registers[number, GENERAL.index(name)])
        return term

    def did(self, step: int) -> Effects:
        """What the instruction of a step did. What lies too far behind it is left as a lost value,
        and is worked out anew when it is asked for itself."""
        found = self._effects.get(step) or self._shallow.get(step)
        if found is not None:
            return found
        if self._depth >= _DEEP:
            self._cut_short = True
            return Effects()
        outer, self._cut_short = self._cut_short, False
        self._depth += 1
        try:
            found = effects_of(self, step)
        finally:
            self._depth -= 1
        (self._shallow if self._cut_short else self._effects)[step] = found
        self._cut_short |= outer
        if not self._depth:
            self._shallow.clear()
            self._cut_short = False
        return found

    def holds(self, condition: Condition | None) -> bool | None:
        """Whether a comparison holds for the concrete values; None when one of them is lost."""
        if condition is None:
            return None
        op, a, b, size = condition
        x, y = self.value(a), self.value(b)
        if x is None or y is None:
            return None
        x, y = x & mask(size), y & mask(size)
        if op[0] == "s":
            x, y = signed(x, size), signed(y, size)
        return {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[
            op if op in ("eq", "ne") else op[1:]
        ]


def _used(insn: Insn, arch: Arch) -> tuple[set[str], set[str]]:
    """Registers that an instruction's values come from, and those that only form addresses."""
    values: set[str] = set()
    places: set[str] = set()
    for effect in insn.effects + insn.otherwise:
        tag = effect[0]
        if tag == "set":
            if effect[1] != arch.stack:
                _split(effect[3], values, places)
            if effect[2] < 4 or insn.kind == "select":
                values.add(effect[1])
        elif tag == "store":
            _split(effect[3], values, places)
            _split(effect[1], places, places)
        elif tag == "flags":
            _split(effect[3], values, places)
            _split(effect[4], values, places)
        elif tag == "swap":
            values.add(effect[3])
            _split(effect[1], places, places)
        elif tag == "bittest":
            _split(effect[3], values, places)
            _split(effect[2], places, places)
    if insn.through is not None:
        _split(insn.through, values, places)
    return values, places


def _split(expr: Expr, values: set[str], places: set[str]) -> None:
    if expr[0] == "reg":
        values.add(expr[1])
    elif expr[0] in ("load", "percpu"):
        _split(expr[1], places, places)
    else:
        for part in expr[1:]:
            if isinstance(part, tuple):
                _split(part, values, places)
