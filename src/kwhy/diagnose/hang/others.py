"""Waiting for a child of vfork(2), and on wait queues that are nobody's in particular."""

from dataclasses import replace

from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.locks import Locks, head_of
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.stacks import Frame, Stack
from kwhy.diagnose.hang.tasks import Tasks


class Others:
    """Recognises waits by the function that sleeps, and proves them by what hangs off it."""

    def __init__(self, memory: Memory, tasks: Tasks, locks: Locks) -> None:
        self._m, self._tasks, self._locks = memory, tasks, locks
        self._children: dict[int, int] | None = None

    def vfork(self, claim: Claim) -> Claim:
        """vfork(2): the parent sleeps until the child that borrowed its memory is done with it."""
        if self._children is None:
            done = "vfork_done"
            self._children = {
                self._m.value("struct task_struct", task.address, done): task.address
                for task in self._tasks.by_address.values()
                if task.mm
            }
        child = self._children.get(claim.address)
        if child is None:
            return claim
        task = self._tasks.by_address[child]
        return replace(
            claim, kind="vfork", proof="the child's vfork_done", owners=(child,), sure="observed",
            object=f"the child that borrowed its memory, {task.tid} {task.comm}",
        )  # fmt: skip

    def queue(self, kind: str, stack: Stack, frame: Frame) -> Claim:
        """A wait queue that is nobody's in particular: its address is all that is certain."""
        found = self._locks.wait_queue(stack)
        if found is None:
            return self._plain(stack, frame, kind, f"sleeping in {frame.name}")
        return Claim(
            stack.task.address, kind, head_of(found[1]), "on a wait queue", frame.name, frame.cfa
        )

    def _plain(self, stack: Stack, frame: Frame, kind: str, proof: str) -> Claim:
        return Claim(stack.task.address, kind, 0, proof, frame.name, frame.cfa)
