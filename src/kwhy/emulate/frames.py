"""Which calls a run is made of: its frames, found from block to block by calls and returns."""

from dataclasses import dataclass, field

import numpy as np

from kwhy.emulate.machine import GENERAL
from kwhy.emulate.steps import Steps
from kwhy.flow.cfg import Code, base_name
from kwhy.flow.ir import Insn


@dataclass(slots=True)
class Called:
    """A call that a frame made: the callee's entry, its frame."""

    function: int
    frame: int


@dataclass(frozen=True, slots=True)
class Back:
    """A return into a frame: the step that runs next, the frame that came back (the last one of
    tail calls), and which of the frame's calls that was."""

    step: int
    callee: int
    call: int


@dataclass(slots=True)
class Frame:
    """One activation of a function. ``entry_stack`` points to its return address.

    ``inputs`` are the registers at its entry. ``by``: the step of the call (or jump, for a tail
    call) that began it, -1 for the first; ``begin``: its own first step, ``end``: the one after its
    last. ``result`` is the returned value once it came back.
    """

    number: int
    entry: int
    name: str
    parent: int | None
    by: int
    begin: int
    entry_stack: int
    tail: bool
    inputs: dict[str, int]
    calls: list[Called] = field(default_factory=list)
    backs: list[Back] = field(default_factory=list)
    end: int = 0
    result: int | None = None


class Frames:
    """The frames of a run, ``all`` of them; ``of_block`` is the number of each block's frame."""

    def __init__(self, code: Code, steps: Steps, result: int | None) -> None:
        self.code, self.arch, self.steps = code, code.arch, steps
        self.all: list[Frame] = []
        self.of_block = np.zeros(len(steps.ids), np.int64)
        self._stack: list[Frame] = []
        self._entries: dict[int, str | None] = {}
        if steps.count:
            self._find(result)

    def _find(self, result: int | None) -> None:
        """Follow calls and returns from block to block."""
        steps, track = self.steps, self.steps.track
        ends = [block.insns[-1] if block.insns else None for block in steps.blocks]
        # After these a frame may have begun or ended; else only where a run was resumed.
        straight = ("op", "branch", "select")
        turns = np.array([insn is None or insn.kind not in straight for insn in ends])
        turned = np.concatenate(([True], turns[steps.ids[:-1]]))
        for cut in track.cuts:
            if 0 <= cut.block + 1 < len(turned):
                turned[cut.block + 1] = True
        stack = GENERAL.index(self.arch.stack)
        last = 0
        for number in np.flatnonzero(turned).tolist():
            if not steps.lengths[number] and number + 1 < len(turned):
                turned[number + 1] = True  # nothing of it ran
            if self._stack:
                self.of_block[last:number] = self._stack[-1].number
            before = ends[steps.ids[number - 1]] if number else None
            address = int(track.addresses[number])
            plain = before is not None and before.kind == "jump" and self._entry(address) is None
            if not plain:
                self._turn(number, address, int(track.registers[number, stack]), before)
            last = number
        self.of_block[last:] = self._stack[-1].number
        for frame in self._stack:
            frame.end, frame.result = steps.count, result

    def _turn(self, number: int, address: int, stack: int, before: Insn | None) -> None:
        step = int(self.steps.starts[number])
        registers = dict(zip(GENERAL, self.steps.track.registers[number].tolist(), strict=True))
        while len(self._stack) > 1 and stack > self._stack[-1].entry_stack:
            popped = outer = self._stack.pop()
            popped.end, popped.result = step, registers[self.arch.result]
            while outer.tail and len(self._stack) > 1:
                outer = self._stack.pop()
                outer.end, outer.result = step, registers[self.arch.result]
            frame = self._stack[-1]
            frame.backs.append(Back(step, popped.number, len(frame.calls) - 1))
        if not self._stack:
            self._enter(step, address, stack, registers, None, False)
        elif before is not None and before.kind == "call" and address != before.end:
            self._enter(step, address, stack, registers, self._stack[-1], False)
        elif before is not None and before.kind in ("jump", "return"):
            self._jumped(step, address, stack, registers, before.kind)

    def _jumped(
        self, step: int, address: int, stack: int, registers: dict[str, int], kind: str
    ) -> None:
        """A tail call begins a frame; what a thunk jumps (or "returns") to is the call meant."""
        name = self._entry(address)
        if name is None or base_name(name) == base_name(self._stack[-1].name):
            return
        if self.arch.indirect_thunk(self._stack[-1].name) is not None:
            self._replace(step, address, registers)
        elif kind == "jump":
            self._enter(step, address, stack, registers, self._stack[-1], True)

    def _entry(self, address: int) -> str | None:
        """The name of the function that begins at an address, if one does."""
        if address not in self._entries:
            symbol = self.code.kernel.symbols.at(address)
            known = symbol is not None and symbol.address == address
            name = symbol.name if symbol is not None and known else None
            self._entries[address] = None if name and self.arch.is_return_thunk(name) else name
        return self._entries[address]

    def _replace(self, step: int, address: int, registers: dict[str, int]) -> None:
        """The innermost frame was a thunk's, which has now jumped to what was meant."""
        frame = self._stack[-1]
        frame.entry, frame.name, frame.begin = address, self.code.name(address), step
        frame.inputs, frame.calls, frame.backs = registers, [], []
        if len(self._stack) > 1:
            self._stack[-2].calls[-1].function = address

    def _enter(
        self,
        step: int,
        address: int,
        stack: int,
        registers: dict[str, int],
        parent: Frame | None,
        tail: bool,
    ) -> None:
        number = len(self.all)
        above = parent.number if parent else None
        name = self.code.name(address)
        frame = Frame(number, address, name, above, step - 1, step, stack, tail, registers)
        if parent is not None:
            parent.calls.append(Called(address, number))
        self.all.append(frame)
        self._stack.append(frame)
