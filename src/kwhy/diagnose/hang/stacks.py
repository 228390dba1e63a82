"""The kernel stack of a task: its frames, from the kernel's own unwind tables."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.memory import Memory, kernel_pointer
from kwhy.diagnose.hang.tasks import Task
from kwhy.kernel.stacksteps import Place
from kwhy.kernel.symbols import Symbol, base_name
from kwhy.kernel.unwind import unwinder

MAX_FRAMES = 128


@dataclass(frozen=True, slots=True)
class Frame:
    """A call in progress. ``pc`` is where it goes on; ``cfa`` the stack pointer of its caller.

    ``guessed``: found by looking for return addresses, not by unwinding.
    """

    pc: int
    sp: int
    cfa: int
    symbol: Symbol | None
    interrupted: bool = False
    guessed: bool = False

    @property
    def call(self) -> int:
        """An address inside the instruction that is being executed, for lines and rules."""
        return self.pc if self.interrupted else self.pc - 1

    @property
    def name(self) -> str:
        """The function as the source has it."""
        return base_name(self.symbol.name) if self.symbol else f"{self.pc:#x}"

    @property
    def offset(self) -> int:
        """Bytes from the function's start."""
        return self.pc - self.symbol.address if self.symbol else 0


@dataclass(frozen=True, slots=True)
class Stack:
    """Frames innermost first. ``regs`` is where the user's registers are saved, None if nowhere."""

    task: Task
    frames: tuple[Frame, ...] = ()
    regs: int | None = None
    words: tuple[int, ...] = ()
    saved: tuple[tuple[str, int], ...] = ()
    """What the innermost frame left in the registers that calls preserve."""

    @property
    def names(self) -> tuple[str, ...]:
        """Function names, innermost first."""
        return tuple(frame.name for frame in self.frames)


class Shown:
    """Which stacks show an address; made for thousands of addresses on thousands of stacks."""

    def __init__(self, stacks: Mapping[int, Stack]) -> None:
        self._stacks = stacks
        self._tasks: list[int] = []
        self._words: npt.NDArray[np.uint64] | None = None
        self._whose: npt.NDArray[np.intp] = np.empty(0, np.intp)

    def on(self, word: int) -> tuple[int, ...]:
        """The tasks with ``word`` on their stacks, in the order of ``stacks``."""
        words = self._sorted()
        first = np.searchsorted(words, np.uint64(word))
        last = np.searchsorted(words, np.uint64(word), side="right")
        return tuple(self._tasks[number] for number in np.unique(self._whose[first:last]))

    def _sorted(self) -> npt.NDArray[np.uint64]:
        if self._words is None:
            self._tasks = list(self._stacks)
            parts = [np.array(s.words, dtype=np.uint64) for s in self._stacks.values()]
            words = np.concatenate([np.empty(0, np.uint64), *parts])
            lengths = np.array([len(part) for part in parts], dtype=np.intp)
            whose = np.repeat(np.arange(len(parts)), lengths)
            kernel = np.flatnonzero(words >> np.uint64(56) == np.uint64(0xFF))
            order = kernel[np.argsort(words[kernel], kind="stable")]
            self._words, self._whose = words[order], whose[order]
        return self._words


class StackReader:
    """Stacks by task; symbols are looked up once per address."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        unwind = unwinder(memory.kernel)
        self.asleep, self.up = unwind.asleep, unwind.up
        self._symbols: dict[int, Symbol | None] = {}

    def prefetch(self, tasks: list[Task]) -> None:
        """Fetch the used parts of many stacks at once."""
        self._memory.evidence.prefetch(
            (task.sp, task.stack.stop - task.sp) for task in tasks if task.sp
        )

    def stack(self, task: Task) -> Stack:
        """Unwind ``task``; an empty stack for one that runs or whose stack cannot be read."""
        if not task.asleep:
            return Stack(task)
        words = self._words(task)
        return _Walk(self, task, words).stack() if words else Stack(task)

    def halted(self, task: Task) -> Stack:
        """Unwind a task that ran, or was ready to, when the kernel was dumped.

        Empty if the CPUs' registers are not known, or it was in user space or on another stack.
        """
        if self._registers and task.state == "R" and not task.on_cpu:
            words = self._words(task)
            return _Walk(self, task, words).stack() if words else Stack(task)
        for registers in self._registers if task.on_cpu else ():
            if task.on_stack(registers["sp"]):
                there = replace(task, sp=registers["sp"])
                words = self._words(there)
                return _Walk(self, there, words).running(registers) if words else Stack(task)
        return Stack(task)

    def _words(self, task: Task) -> tuple[int, ...]:
        try:
            raw = self._memory.read(task.sp, task.stack.stop - task.sp)
        except MissingMemory:
            return ()
        return struct.unpack(f"<{len(raw) // 8}Q", raw[: len(raw) // 8 * 8])

    @cached_property
    def _registers(self) -> list[dict[str, int]]:
        try:
            told = json.loads(self._memory.evidence.blob("registers") or b"[]")
        except ValueError:
            return []
        wanted = ("sp", "ip", "bp")
        return [
            row
            for row in told
            if isinstance(row, dict) and all(isinstance(row.get(name), int) for name in wanted)
        ]

    def symbol(self, address: int) -> Symbol | None:
        """The function around a code address."""
        if address not in self._symbols:
            self._symbols[address] = self._memory.kernel.symbols.at(address)
        return self._symbols[address]


class _Walk:
    def __init__(self, reader: StackReader, task: Task, words: tuple[int, ...]) -> None:
        self._u, self._task, self._words = reader, task, words
        self._frames: list[Frame] = []
        self._regs: int | None = None

    def _word(self, address: int) -> int:
        index, rest = divmod(address - self._task.sp, 8)
        if rest or not 0 <= index < len(self._words):
            raise LookupError
        return self._words[index]

    def stack(self) -> Stack:
        try:
            place, saved = self._u.asleep(self._task.sp, self._word)
        except LookupError:  # its stack pointer is torn
            return Stack(self._task)
        return self._from(place, saved)

    def running(self, registers: dict[str, int]) -> Stack:
        """From where a CPU was."""
        return self._from(Place(registers["ip"], registers["sp"], registers["bp"], True), {})

    def _from(self, place: Place, saved: dict[str, int]) -> Stack:
        try:
            self._unwind(place)
        except LookupError:
            self._guess()
        return Stack(self._task, tuple(self._frames), self._regs, self._words, tuple(saved.items()))

    def _unwind(self, at: Place | None) -> None:
        while at is not None and len(self._frames) < MAX_FRAMES:
            step = self._u.up(at, self._word)
            symbol = self._u.symbol(at.pc if at.interrupted else at.pc - 1)
            self._frames.append(Frame(at.pc, at.sp, step.cfa, symbol, at.interrupted))
            self._regs = self._regs if step.regs is None else step.regs
            if step.lost:
                raise LookupError
            at = step.caller

    def _guess(self) -> None:
        """Return addresses on the rest of the stack: what is left where the tables do not help."""
        last = self._frames[-1].cfa if self._frames else self._task.sp
        for index in range(max(0, (last - self._task.sp) // 8), len(self._words)):
            word = self._words[index]
            symbol = self._u.symbol(word - 1) if kernel_pointer(word) else None
            if symbol is not None and symbol.code and word != symbol.address:
                at = self._task.sp + 8 * index
                self._frames.append(Frame(word, at, at + 8, symbol, guessed=True))
            if len(self._frames) >= MAX_FRAMES:
                return
