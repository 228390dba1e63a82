"""What is told of one task: its system call in words, its stack with source lines, how long."""

from dataclasses import replace

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.arguments import Arguments
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.objects import Objects
from kwhy.diagnose.hang.stacks import Frame as Call
from kwhy.diagnose.hang.stacks import Stack, StackReader
from kwhy.diagnose.hang.survey import Survey, survey
from kwhy.diagnose.hang.tasks import Task as Seen
from kwhy.diagnose.hang.user import DESCRIPTORS, PATHS
from kwhy.errors import FeatureError, UsageError
from kwhy.kernel.model import Kernel
from kwhy.verdict.hang import Frame, Taken, Task

MAX_ARGUMENTS = 500
"""Tasks whose frames' arguments are recovered; beyond, frames alone must do."""


def told(kernel: Kernel, pid: int) -> Task:
    """One process or thread, whatever it waits for. Raises UsageError when there is none."""
    memory = Memory(kernel)
    try:
        seen = survey(memory)
    except (MissingMemory, LookupError) as error:
        raise FeatureError(f"the tasks cannot be listed: {error}", "kernel memory") from error
    task = seen.tasks.by_tid.get(pid)
    if task is None:
        raise UsageError(f"no process or thread has the number {pid}")
    if task.address not in seen.stacks:  # an idle kernel thread: nobody waits for it
        seen.stacks[task.address] = StackReader(memory).stack(task)
    return Detail(kernel, seen).task(task, None)


class Detail:
    """Describes tasks of one survey."""

    def __init__(self, kernel: Kernel, seen: Survey) -> None:
        self._kernel, self._seen = kernel, seen
        self._objects = Objects(seen.look)
        self._frames: dict[tuple[int, bool], Frame] = {}
        self._arguments = Arguments(kernel)
        self._reader = StackReader(seen.memory)
        self._told = 0

    def task(self, task: Seen, waits_for: int | None) -> Task:
        """``task`` as the answer shows it; one that runs has no stack to show."""
        stack = self._seen.stacks.get(task.address)
        if stack is None:
            stack = self._reader.halted(task)
        call = self._seen.user.arguments(stack) if stack else None
        since = self._seen.now - task.seen
        return Task(
            tid=task.tid,
            comm=task.comm,
            state=task.state,
            syscall=call[0] if call else None,
            args=tuple(f"{value:#x}" for value in call[1]) if call else (),
            seconds=since // 10**9 if 0 <= since and task.seen and not task.on_cpu else None,
            stack=self._stack(stack) if stack else (),
            waits_for=waits_for,
            pid=task.tgid,
            decoded=self._decoded(task, *call) if call else (),
        )

    def taken(self, task: Seen, locks: list[int]) -> dict[int, Taken]:
        """Where ``task`` took each of ``locks``, by address."""
        stack = self._seen.stacks.get(task.address)
        return self._arguments.taken(stack, locks) if stack else {}

    def _stack(self, stack: Stack) -> tuple[Frame, ...]:
        self._told += 1
        if self._told > MAX_ARGUMENTS:
            return tuple(self._frame(frame) for frame in stack.frames)
        return tuple(
            replace(self._frame(frame), args=self._arguments.frame(stack, number))
            for number, frame in enumerate(stack.frames)
        )

    def _decoded(self, task: Seen, name: str, values: tuple[int, ...]) -> tuple[str, ...]:
        words = [""] * len(values)
        for index in PATHS.get(name, ()):
            text = self._seen.user.string(task, values[index])
            if text is not None:
                words[index] = f'"{text}"'
        for index in DESCRIPTORS.get(name, ()):
            number = values[index] & 0xFFFFFFFF
            try:
                path = self._objects.descriptor_path(task, number)
            except (MissingMemory, LookupError):
                path = ""
            if path:
                words[index] = f"{number}<{path}>"
        return tuple(words) if any(words) else ()

    def _frame(self, call: Call) -> Frame:
        key = (call.pc, call.guessed)
        if key not in self._frames:
            lines = self._kernel.frames(call.call)
            symbol = call.symbol
            self._frames[key] = Frame(
                function=call.name,
                offset=f"{call.offset:#x}",
                file=lines[0].file if lines else None,
                line=lines[0].line if lines else None,
                module=symbol.module if symbol else None,
                inlined=tuple(line.function for line in lines[:-1]),
                guessed=call.guessed,
            )
        return self._frames[key]
