"""What one look at a kernel gives to those who prove waits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.ends import Ends, Open
from kwhy.diagnose.hang.locks import Locks, head_of
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.stacks import Frame, Stack
from kwhy.diagnose.hang.tasks import Tasks
from kwhy.diagnose.hang.user import UserMemory


@dataclass(frozen=True, slots=True)
class Look:
    """Everything that was read, by what it is good for. ``stacks`` by task address.

    ``now`` is the scheduler's clock in ns; ``cache`` keeps what is worked out once for all tasks.
    """

    memory: Memory
    tasks: Tasks
    stacks: Mapping[int, Stack]
    locks: Locks
    user: UserMemory
    ends: Ends
    now: int = 0
    cache: dict[Any, Any] = field(default_factory=dict)

    def queue(self, stack: Stack) -> int:
        """The address of the ``wait_queue_head`` that the task hangs in; raises LookupError."""
        found = self.locks.wait_queue(stack)
        if found is None:
            raise LookupError("the task hangs in no wait queue")
        return head_of(found[1]) - self.memory.offset("struct wait_queue_head", "head")

    def processes(self, tasks: Sequence[int]) -> frozenset[int]:
        """The processes of ``tasks``; thousands of waits may share one sequence."""
        if ("processes", id(tasks)) not in self.cache:
            found = frozenset(self.tasks.by_address[task].tgid for task in tasks)
            self.cache["processes", id(tasks)] = (tasks, found)  # kept, or its id may be another's
        processes: frozenset[int] = self.cache["processes", id(tasks)][1]
        return processes

    def inside(self, address: int, type: str, path: str) -> int:
        """The structure of which ``address`` is a member; raises LookupError."""
        return address - self.memory.offset(type, path)


Prover = Callable[[Look, Stack, Frame], Claim | None]
"""Proves what a stack waits for, given the frame that says so; None where it cannot."""


def claim(stack: Stack, frame: Frame, kind: str, address: int, proof: str) -> Claim:
    """A wait of the task of ``stack``, nobody yet known to end it."""
    return Claim(stack.task.address, kind, address, proof, frame.name, frame.cfa)


def ended_by(
    base: Claim, look: Look, opens: Iterable[Open], only: bool = True, itself: bool = False
) -> Claim:
    """The same wait, to be ended by whoever has one of ``opens``.

    ``only``: the kernel has no other way to end it, so that open files that are all known and
    whose users are all known make the answer complete. A process that waits for itself alone is
    not stuck, as that may be how it waits for signals; ``itself``: no handler of a signal runs
    while it waits, so that it is stuck when all its threads are.
    """
    files = tuple(opens)
    users = look.ends.users(files)
    own = look.tasks.by_address[base.task].tgid
    others = look.processes(users) - {own}
    whole = only and bool(others or (itself and users)) and all(one.whole for one in files)
    return replace(
        base, any_of=users, complete=whole, sure="deduced" if users else "unknown",
        timed=base.timed or _alarmed(look, base.task),
    )  # fmt: skip


def _alarmed(look: Look, task: int) -> bool:
    """Whether alarm(2) or setitimer(2) will interrupt what the task's process waits for."""
    m, kind = look.memory, "struct signal_struct"
    signal = m.value("struct task_struct", task, "signal")
    running = [p for p in ("real_timer.state", "real_timer.is_queued") if m.has(kind, p)]
    return any(m.value(kind, signal, path) for path in running)
