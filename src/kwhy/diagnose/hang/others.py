"""Waiting for things that are no sleeping lock: futexes, a child of vfork(2), wait queues."""

from dataclasses import replace

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.locks import Locks, head_of
from kwhy.diagnose.hang.memory import Memory, kernel_pointer
from kwhy.diagnose.hang.stacks import Frame, Stack
from kwhy.diagnose.hang.tasks import Task, Tasks
from kwhy.diagnose.hang.user import UserMemory

_PI_COMMANDS = frozenset({6, 8, 11, 13})  # LOCK_PI, TRYLOCK_PI, WAIT_REQUEUE_PI, LOCK_PI2
_FUTEX_COMMAND = 0x7F
_CONTENDED, _GLIBC_KINDS = 2, 0x1FF  # glibc: lowlevellock.h, pthread_mutex_t.__kind


class Others:
    """Recognises waits by the function that sleeps, and proves them by what hangs off it."""

    def __init__(self, memory: Memory, tasks: Tasks, locks: Locks, user: UserMemory) -> None:
        self._m, self._tasks, self._locks, self._user = memory, tasks, locks, user
        self._children: dict[int, int] | None = None

    def futex(self, stack: Stack, frame: Frame) -> Claim | None:
        """A futex: for PI the kernel has its owner; for others glibc's mutex may tell."""
        arguments = self._user.arguments(stack)
        if arguments is None or arguments[0] != "futex":
            return self._plain(stack, frame, "futex", "sleeping in futex_wait")
        address, command = arguments[1][0], arguments[1][1] & _FUTEX_COMMAND
        key = self._futex_key(stack)
        proof = "queued on the futex" if key else "sleeping in futex_wait"
        claim = Claim(
            stack.task.address, "futex", address, proof, frame.name, frame.cfa, extra=key,
            timed=bool(arguments[1][3]),
        )  # fmt: skip
        if command in _PI_COMMANDS:
            found = self._locks.inherited(replace(claim, proof="task->pi_blocked_on"))
            note = "it waits for a condition; who will signal that is not recorded"
            return found[1] if found is not None else replace(claim, note=note)
        words = self._user.words(stack.task, address, 20)
        if words is None:
            return replace(claim, note="the futex word cannot be read")
        return self._glibc(claim, stack.task, words)

    def _glibc(self, claim: Claim, task: Task, words: tuple[int, ...]) -> Claim:
        """pthread_mutex_t is {lock, count, owner, users, kind}, ints, in glibc on x86-64."""
        value, _count, owner, users, kind = words
        holder = self._tasks.by_tid.get(owner)
        if value != _CONTENDED or holder is None or holder.address == task.address:
            return replace(claim, note=f"its word is {value}; who will wake it is not recorded")
        private = holder.mm != task.mm
        if not 0 < users < 1 << 16 or kind & ~_GLIBC_KINDS or (private and not kind & 0x80):
            return replace(claim, note=f"its word is {value}; who will wake it is not recorded")
        note = "the owner is what the C library wrote beside the futex word"
        return replace(claim, owners=(holder.address,), sure="deduced", note=note)

    def _futex_key(self, stack: Stack) -> tuple[tuple[str, int], ...]:
        """What the kernel knows the futex by, from the ``futex_q`` on the stack that is queued.

        The memory map and address of a private one, the inode's number and offset of a shared one.
        """
        m = self._m
        at, lock_at = m.offset("struct futex_q", "task"), m.offset("struct futex_q", "lock_ptr")
        node = m.offset("struct futex_q", "list.node_list")
        for index, word in enumerate(stack.words):
            queued = stack.task.sp + 8 * index - at
            if word != stack.task.address or not m.linked(queued + node):
                continue
            try:
                if kernel_pointer(m.u64(queued + lock_at)):
                    parts = ("ptr", "word", "offset")
                    return tuple(
                        (f"futex {part}", m.value("struct futex_q", queued, f"key.both.{part}"))
                        for part in parts
                    )
            except MissingMemory:
                continue
        return ()

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
        return replace(
            claim, kind="vfork", proof="the child's vfork_done", owners=(child,), sure="observed"
        )

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
