"""What the functions on a task's stack were called with, and where it took the locks it holds."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from kwhy.arch import of
from kwhy.case.evidence import JSON, MissingMemory
from kwhy.diagnose.hang.memory import kernel_pointer
from kwhy.diagnose.hang.stacks import Stack
from kwhy.flow.cfg import Code
from kwhy.flow.frames import Recovered, Recovery, SystemCall, Value
from kwhy.flow.places import Call
from kwhy.kernel.model import Kernel
from kwhy.kernel.program import open_program
from kwhy.kernel.symbols import Symbol, base_name
from kwhy.kernel.types import TypeRef
from kwhy.verdict.hang import Argument, Taken

#: Functions that take the lock that is their first argument.
_TAKES = frozenset({
    "mutex_lock", "mutex_lock_nested", "mutex_lock_interruptible", "mutex_lock_killable",
    "mutex_lock_io", "mutex_trylock", "down_read", "down_read_interruptible", "down_read_killable",
    "down_read_trylock", "down_write", "down_write_killable", "down_write_trylock", "down",
    "down_interruptible", "down_killable", "down_trylock", "rt_mutex_lock",
    "rt_mutex_lock_interruptible", "rt_mutex_trylock", "percpu_down_write", "ww_mutex_lock",
    "rwsem_down_write_slowpath", "rwsem_down_read_slowpath",
})  # fmt: skip
_GIVES = frozenset({
    "mutex_unlock", "up_read", "up_write", "up", "rt_mutex_unlock", "percpu_up_write",
    "ww_mutex_unlock",
})  # fmt: skip
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class _Called:
    pc: int
    cfa: int
    entry: int | None


class Arguments:
    """Recovers arguments on the stacks of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._recovery = Recovery(Code(kernel, of(kernel.arch)), of(kernel.arch))
        self._stacks: dict[int, Recovered | None] = {}
        self._program: Any = None

    def frame(self, stack: Stack, number: int) -> tuple[Argument, ...]:
        """The parameters of a frame's function; those that are not known have no value."""
        frame = stack.frames[number]
        if frame.symbol is None or frame.guessed or frame.interrupted:
            return ()
        entry = self._entry(frame.symbol)
        prototype = self._kernel.prototype(entry, sure=True) if entry is not None else None
        recovered = self._recovered(stack)
        if prototype is None or prototype.optimised or recovered is None:
            return ()
        types = self._kernel.types
        found = []
        for index, (name, type) in enumerate(prototype.params[:6]):
            if types.is_struct(type) or (types.size(type) or 8) > 8:  # not one register
                break
            value = recovered.argument(number, index)
            if value is not None:
                value = self._fitting(type, value)
            now = self._debug(stack, frame.pc, name) if value is None else None
            value = value if now is None else Value(now, "by debug symbols")
            found.append(
                Argument(
                    name=name or f"argument {index + 1}",
                    value=self._shown(type, value.value) if value else "",
                    source=value.source if value else "not known",
                    now=now is not None,
                )
            )
        return tuple(found)

    def taken(self, stack: Stack, locks: Iterable[int]) -> dict[int, Taken]:
        """Where the task of ``stack`` took each of ``locks``, which it owns.

        Only where its frames still tell, and only one place fits.
        """
        wanted = set(locks)
        recovered = self._recovered(stack) if wanted else None
        if recovered is None:
            return {}
        found: dict[int, list[Taken]] = {}
        for number, frame in enumerate(stack.frames):
            places = self._recovery.places(frame.symbol.address if frame.symbol else None)
            if places is None or frame.guessed or frame.pc not in places.calls:
                continue
            calls = [
                (end, name, value)
                for end, call in places.calls.items()
                if end != frame.pc and (name := self._callee(call)) in _TAKES | _GIVES
                if (value := self._first(recovered, number, call)) in wanted
            ]
            for end, name, lock in calls:
                if name in _GIVES or not places.reaches(end, frame.pc):
                    continue
                given = (e for e, n, v in calls if n in _GIVES and v == lock)
                if not any(places.reaches(end, e) and places.reaches(e, frame.pc) for e in given):
                    found.setdefault(lock, []).append(self._place(stack, frame.name, end))
        return {lock: places[0] for lock, places in found.items() if len(places) == 1}

    def _callee(self, call: Call) -> str:
        if call.insn.target is None:
            return ""
        return base_name(self._recovery.code.name(self._recovery.code.resolve(call.insn.target)))

    def _first(self, recovered: Recovered, number: int, call: Call) -> int:
        value = recovered.passed_at(number, call, self._recovery.arch.arguments[0])
        return value.value if value is not None and value.width == 8 else 0

    def _place(self, stack: Stack, function: str, end: int) -> Taken:
        lines = self._kernel.frames(end - 1)
        return Taken(
            tid=stack.task.tid,
            function=function,
            file=lines[-1].file if lines else None,
            line=lines[-1].line if lines else None,
        )

    def _debug(self, stack: Stack, pc: int, name: str) -> int | None:
        """A parameter's present value where debug symbols say where it is kept."""
        task = stack.task.address
        told = self._kernel.evidence.answer(f"hang/debug/{task:x}", lambda: self._by_debug(task))
        value = told.get(f"{pc:x} {name}") if isinstance(told, dict) else None
        return value & _MASK if isinstance(value, int) else None

    def _by_debug(self, task: int) -> JSON:
        import drgn

        if self._kernel.vmlinux is None:
            return {}
        if self._program is None:
            # It warns about every expression of DWARF that it does not know.
            logging.getLogger("drgn").setLevel(logging.CRITICAL)
            self._program = open_program(self._kernel)
        found: dict[str, JSON] = {}
        try:
            object = drgn.Object(self._program, "struct task_struct *", task)
            frames = [frame for frame in self._program.stack_trace(object) if not frame.is_inline]
        except Exception:  # drgn raises what damaged memory happens to make it raise
            return found
        for frame in frames:
            for name in frame.locals():
                try:
                    value = frame[name]
                    if not value.absent_ and isinstance(value.value_(), int):
                        found[f"{frame.pc:x} {name}"] = int(value.value_())
                except Exception:  # likewise, and for what its DWARF reader does not know
                    continue
        return found

    def _recovered(self, stack: Stack) -> Recovered | None:
        if stack.task.address not in self._stacks:
            self._stacks[stack.task.address] = self._recover(stack)
        return self._stacks[stack.task.address]

    def _recover(self, stack: Stack) -> Recovered | None:
        if not stack.frames:
            return None
        frames = [
            _Called(f.pc, f.cfa, self._entry(f.symbol) if f.symbol and not f.guessed else None)
            for f in stack.frames
        ]
        base = stack.task.sp

        def word(address: int) -> int | None:
            index, rest = divmod(address - base, 8)
            return stack.words[index] if not rest and 0 <= index < len(stack.words) else None

        call = self._call(stack, word)
        return self._recovery.stack(frames, dict(stack.saved), word, self._load, call)

    def _entry(self, symbol: Symbol) -> int | None:
        """Where the function starts of which ``symbol`` is the whole or the unlikely part."""
        name, cold, _number = symbol.name.partition(".cold")
        return self._kernel.symbols.address(name) if cold else symbol.address

    def _load(self, address: int, size: int) -> int | None:
        try:
            if kernel_pointer(address):
                return int.from_bytes(self._kernel.evidence.read(address, size), "little")
        except MissingMemory:
            pass
        return None

    def _call(self, stack: Stack, word: Callable[[int], int | None]) -> SystemCall | None:
        """The system call that the task is in, by the kernel's own table."""
        arch = self._recovery.arch
        table = self._kernel.symbols.address(arch.syscall_table)
        if stack.regs is None or table is None or stack.names[-2:-1] != (arch.syscall_dispatch,):
            return None
        number = word(stack.regs + arch.syscall_number)
        name = arch.syscalls.get(number) if number is not None else None
        function = self._load(table + 8 * number, 8) if name and number is not None else None
        if function is None:
            return None
        # Who traces a task may change its registers, and so do these calls.
        lasting = not stack.task.tracer and name not in ("execve", "execveat", "rt_sigreturn")
        kept = frozenset(stack.regs + at for at in arch.syscall_arguments)
        frame = len(stack.frames) - 3
        if not lasting:
            return SystemCall(frame, function, stack.regs)
        return SystemCall(frame, function, stack.regs, number, kept)

    def _fitting(self, type: TypeRef, value: Value) -> Value | None:
        """A value of which only the low half is known serves for a type that is no larger."""
        size = self._kernel.types.size(type)
        if value.width == 4 and (size is None or size > 4):
            return None
        return value

    def _shown(self, type: TypeRef, value: int) -> str:
        types = self._kernel.types
        if types.is_pointer(type):
            return f"{value:#x}" if value else "NULL"
        size = types.size(type) or 8
        value &= (1 << 8 * size) - 1
        if types.is_signed(type) and value >> 8 * size - 1:
            return str(value - (1 << 8 * size))
        return str(value) if value < 1 << 20 else f"{value:#x}"
