"""Waiting for sleeping locks: found on the waiter's stack, proven by the lock's own list."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.ages import Ages
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.memory import MASK, Memory, kernel_pointer
from kwhy.diagnose.hang.rings import Ring, Rings
from kwhy.diagnose.hang.stacks import Frame, Shown, Stack
from kwhy.diagnose.hang.tasks import Tasks

ON_LIST = "on wait_list"
_OWNER_FLAGS = 7  # low bits of mutex.owner and rwsem.owner
_READER_OWNED = 1  # RWSEM_READER_OWNED
_WRITER_LOCKED, _READER_SHIFT = 1, 8  # kernel/locking/rwsem.c
_FUTEXES = ("futex_lock_pi", "futex_wait_requeue_pi", "do_futex")
_WAITING_FOR_WRITE = 0  # enum rwsem_waiter_type


class Locks:
    """Recognises who waits for which lock. ``stacks`` of all sleeping tasks, by task address."""

    def __init__(self, memory: Memory, tasks: Tasks, stacks: dict[int, Stack]) -> None:
        self._m, self._tasks, self._shown = memory, tasks, Shown(stacks)
        self._rings = Rings(memory, tasks)
        self._ages = Ages(memory)
        self._holders: dict[int, tuple[int, ...]] = {}
        self._writers: dict[int, dict[int, int]] = {}

    # -- the four with a list of waiters of the same shape -----------------------------------------

    def mutex(self, stack: Stack, frame: Frame) -> Claim | None:
        """``struct mutex``: its owner is in the lock."""
        found = self._queued(stack, "struct mutex", "struct mutex_waiter")
        if found is None:
            return None
        lock, ring, _node = found
        owner = self._m.value("struct mutex", lock, "owner") & ~_OWNER_FLAGS & MASK
        claim = self._claim(stack, frame, "mutex", lock)
        if self._reborn(owner, ring):
            return self._gone(claim, owner)
        if not owner:
            return self._free(claim, ring, "the mutex is free; it is being handed over")
        return self._owned(claim, owner)

    def rwsem(self, stack: Stack, frame: Frame) -> Claim | None:
        """``struct rw_semaphore``: a writer is recorded, of readers only their number."""
        m = self._m
        found = self._queued(stack, "struct rw_semaphore", "struct rwsem_waiter")
        if found is None:
            return None
        lock, ring, node = found
        kind = "rwsem-read"
        if m.value("struct rwsem_waiter", node, "type") == _WAITING_FOR_WRITE:
            kind = "rwsem-write"
        claim = self._claim(stack, frame, kind, lock)
        count = m.value("struct rw_semaphore", lock, "count")
        owner = m.value("struct rw_semaphore", lock, "owner")
        if count & _WRITER_LOCKED:
            writer = owner & ~_OWNER_FLAGS & MASK
            if self._reborn(writer, ring):
                return self._gone(claim, writer)
            return self._owned(claim, writer, "its writer is just changing")
        readers = count >> _READER_SHIFT & (1 << 54) - 1
        if not readers:
            return self._free(claim, ring, "the rwsem is free; it is being handed over")
        return self._read_held(claim, ring, readers, owner)

    def _read_held(self, claim: Claim, ring: Ring, readers: int, owner: int) -> Claim:
        """Readers are counted, not recorded: who took it last, and who shows it on the stack."""
        candidates = self._likely(claim.address, ring)
        last = owner & ~_OWNER_FLAGS & MASK if owner & _READER_OWNED else 0
        if last == claim.task or last not in self._tasks.by_address:
            last = 0
        behind: tuple[int, ...] = ()
        if claim.kind == "rwsem-read":
            before = self._writer_before(claim.address, ring).get(claim.task)
            behind = (before,) if before else ()
        count = "1 reader holds it" if readers == 1 else f"{readers} readers hold it"
        if last:
            candidates = tuple(dict.fromkeys((last, *candidates)))
            count += f"; the last to take it was {self._tasks.by_address[last].tid}"
        note = f"{count}; the kernel does not record which"
        return replace(claim, candidates=candidates, behind=behind, note=note)

    def _writer_before(self, lock: int, ring: Ring) -> dict[int, int]:
        """For each reader in a queue the last writer queued before it, who has to go first."""
        if lock not in self._writers:
            kind = "struct rwsem_waiter"
            at = self._m.offset(kind, "list")
            found, writer = {}, 0
            for node, task in ring.waiters:
                if self._m.value(kind, node - at, "type") == _WAITING_FOR_WRITE:
                    writer = task
                elif writer:
                    found[task] = writer
            self._writers[lock] = found
        return self._writers[lock]

    def semaphore(self, stack: Stack, frame: Frame) -> Claim | None:
        """``struct semaphore``: nobody owns one; newer kernels keep the last that took it."""
        m = self._m
        found = self._queued(stack, "struct semaphore", "struct semaphore_waiter")
        if found is None:
            return None
        lock = found[0]
        claim = self._claim(stack, frame, "semaphore", lock)
        if m.has("struct semaphore", "last_holder"):
            last = self._tasks.by_address.get(m.value("struct semaphore", lock, "last_holder"))
            if last is not None and last.address != stack.task.address:
                note = "semaphores have no owner; this task took it last"
                return replace(claim, candidates=(last.address,), note=note)
        return replace(
            claim, candidates=self._likely(lock, found[1]), note="semaphores have no owner"
        )

    # -- the others --------------------------------------------------------------------------------

    def rt_mutex(self, stack: Stack, frame: Frame) -> Claim | None:
        """``struct rt_mutex``; one that a futex made is told as that futex."""
        if any(name.startswith(_FUTEXES) for name in stack.names):
            return None
        claim = Claim(
            stack.task.address, "rt_mutex", 0, "task->pi_blocked_on", frame.name, frame.cfa
        )
        found = self.inherited(claim)
        return None if found is None else replace(found[1], address=found[0])

    def inherited(self, claim: Claim) -> tuple[int, Claim] | None:
        """(the rt_mutex that a task says itself it is blocked on, ``claim`` with its owner)."""
        m = self._m
        waiter = m.value("struct task_struct", claim.task, "pi_blocked_on")
        if not waiter or m.value("struct rt_mutex_waiter", waiter, "task") != claim.task:
            return None
        lock = m.value("struct rt_mutex_waiter", waiter, "lock")
        kind = "struct rt_mutex_base" if m.type("struct rt_mutex_base") else "struct rt_mutex"
        owner = m.value(kind, lock, "owner") & ~1 & MASK
        # rt_mutex_enqueue_pi(): whoever owns one that is waited for has the first waiter.
        path = "pi_waiters.rb_root.rb_node"
        if owner in self._tasks.by_address and not m.value("struct task_struct", owner, path):
            return lock, self._gone(claim, owner)
        return lock, self._owned(claim, owner, "the rt_mutex is free; it is being handed over")

    def completion(self, stack: Stack, frame: Frame) -> Claim | None:
        """``struct completion``: whoever completes it is not recorded."""
        m = self._m
        node_at = m.offset("struct swait_queue", "task_list")
        task_at = m.offset("struct swait_queue", "task")
        for at in places(stack, stack.task.address):
            node = at - task_at + node_at
            if not m.linked(node):
                continue
            ring = self._rings.around(node, task_at - node_at)
            if ring is None or ring.head is None:
                continue
            address = ring.head - m.offset("struct completion", "wait.task_list")
            return Claim(stack.task.address, "completion", address, ON_LIST, frame.name, frame.cfa)
        return None

    def percpu_read(self, stack: Stack, frame: Frame) -> Claim | None:
        """``struct percpu_rw_semaphore``, queued behind a writer; who writes is not recorded."""
        return self._percpu(stack, frame)

    def _percpu(self, stack: Stack, frame: Frame) -> Claim | None:
        m = self._m
        found = self.wait_queue(stack)
        if found is None:
            return None
        entering = "rcu_sync_enter" in stack.names
        queue = "rss.gp_wait.head" if entering else "waiters.head"
        address = head_of(found[1]) - m.offset("struct percpu_rw_semaphore", queue)
        writes = "percpu_down_write" in stack.names
        kind = "percpu-rwsem-write" if writes else "percpu-rwsem-read"
        claim = Claim(stack.task.address, kind, address, ON_LIST, frame.name, frame.cfa)
        if entering:
            note = "another writer has begun a grace period of RCU, after which both ask for it"
            return replace(claim, note=note)
        blocked = m.value("struct percpu_rw_semaphore", address, "block")
        writer = self._tasks.by_address.get(
            m.value("struct percpu_rw_semaphore", address, "writer.task")
        )
        if blocked and writer is not None:
            note = "this writer has locked it and waits for readers to leave"
            return replace(claim, owners=(writer.address,), sure="observed", note=note)
        return replace(
            claim, candidates=self._likely(address, found[1]), note="who holds it is not recorded"
        )

    def percpu_write(self, stack: Stack, frame: Frame) -> Claim | None:
        """A writer that waits for the readers of a ``struct percpu_rw_semaphore`` to leave."""
        m = self._m
        found = []
        for word in _pointers(stack):
            try:
                writer = m.value("struct percpu_rw_semaphore", word, "writer.task")
                if writer == stack.task.address and not stack.task.on_stack(word):
                    found.append(word)
            except MissingMemory:
                continue
        if len(found) != 1:
            return self._percpu(stack, frame)
        candidates = self._likely(found[0], Ring(None, ((0, stack.task.address),)))
        return Claim(
            stack.task.address, "percpu-rwsem-write", found[0], "the lock's writer", frame.name,
            frame.cfa, candidates=candidates, note="its readers are not recorded",
        )  # fmt: skip

    def wait_queue(self, stack: Stack) -> tuple[int, Ring] | None:
        """(entry, ring with a head) of the queue the task hangs in by an entry on its stack."""
        m = self._m
        node_at = m.offset("struct wait_queue_entry", "entry")
        task_at = m.offset("struct wait_queue_entry", "private")
        for at in places(stack, stack.task.address):
            entry = at - task_at
            if not m.linked(entry + node_at):
                continue
            ring = self._rings.around(entry + node_at, task_at - node_at)
            if ring is not None and ring.head is not None:
                return entry, ring
        return None

    # -- shared ------------------------------------------------------------------------------------

    def _queued(self, stack: Stack, lock: str, waiter: str) -> tuple[int, Ring, int] | None:
        """(lock, ring, waiter) where the waiter on the stack names the task and hangs in a list."""
        m = self._m
        node_at, task_at = m.offset(waiter, "list"), m.offset(waiter, "task")
        headless = m.has(lock, "first_waiter")
        for at in places(stack, stack.task.address):
            node = at - task_at + node_at
            if not m.linked(node):
                continue
            ring = self._rings.around(node, task_at - node_at)
            if ring is None or (ring.head is None) != headless:
                continue
            if ring.head is not None:
                return ring.head - m.offset(lock, "wait_list"), ring, node - node_at
            first_at = m.offset(lock, "first_waiter")
            found = self._rings.pointing(ring, self._blockers(stack), first_at)
            if found is None:
                others = (word for word in _pointers(stack) if not stack.task.on_stack(word))
                found = self._rings.pointing(ring, others, first_at)
            if found is not None:
                return found[0], found[1], node - node_at
        return None

    def _blockers(self, stack: Stack) -> Iterator[int]:
        """What newer kernels keep in the task (include/linux/hung_task.h, sched.h)."""
        for path in ("blocker", "blocked_on"):
            if self._m.has("struct task_struct", path):
                yield self._m.value("struct task_struct", stack.task.address, path) & ~3

    def _claim(self, stack: Stack, frame: Frame, kind: str, lock: int) -> Claim:
        return Claim(stack.task.address, kind, lock, ON_LIST, frame.name, frame.cfa)

    def _free(self, claim: Claim, ring: Ring, note: str) -> Claim:
        """Nobody has it; ``extra`` names the first waiter, which should be awake by then."""
        first = ring.waiters[0][1] if ring.waiters else claim.task
        return replace(claim, note=note, extra=(("free", first),))

    def _owned(self, claim: Claim, owner: int, free: str = "") -> Claim:
        if not owner:
            return replace(claim, note=free)
        task = self._tasks.by_address.get(owner)
        if task is not None and task.state not in "ZX":
            return replace(claim, owners=(owner,), sure="observed")
        if task is None and self._tasks.still_there(owner):
            return replace(claim, note=f"its owner {owner:#x} was not among the tasks listed")
        who = f"{owner:#x} is no task any more: it" if task is None else f"{task.tid} {task.comm}"
        note = f"its owner {who} ended without releasing the lock"
        return replace(claim, note=note, sure="observed", extra=(("gone", owner),))

    def _reborn(self, owner: int, ring: Ring) -> bool:
        """Whether a task lives where a lock's owner was: it was made when the first waiter slept.

        Whoever gives the lock back wakes the first waiter. One that sleeps has not been woken, so
        that the owner of that time has the lock still.
        """
        first = self._tasks.by_address[ring.waiters[0][1]] if ring.waiters else None
        if owner not in self._tasks.by_address or first is None or not first.asleep:
            return False
        return self._ages.younger(owner, first.address)

    def _gone(self, claim: Claim, owner: int) -> Claim:
        """The owner's memory is another task's by now."""
        task = self._tasks.by_address[owner]
        note = (
            "its owner ended without releasing the lock; where that was in memory "
            f"{task.tid} {task.comm} is now, which was made later"
        )
        return replace(claim, note=note, sure="deduced", extra=(("gone", owner),))

    def _likely(self, lock: int, ring: Ring) -> tuple[int, ...]:
        """Sleeping tasks with the lock's address on their stacks that do not wait for it.

        No proof: the address may be left over from an earlier use.
        """
        if lock not in self._holders:
            queued = set(ring.tasks())
            self._holders[lock] = tuple(t for t in self._shown.on(lock) if t not in queued)
        return self._holders[lock]


def head_of(ring: Ring) -> int:
    """The head of a ring that has one."""
    assert ring.head is not None
    return ring.head


def places(stack: Stack, word: int) -> Iterator[int]:
    """Stack addresses that hold ``word``."""
    for index, here in enumerate(stack.words):
        if here == word:
            yield stack.task.sp + 8 * index


def _pointers(stack: Stack) -> Iterator[int]:
    """Distinct words of the stack that may point into kernel memory."""
    for word in dict.fromkeys(stack.words):
        if kernel_pointer(word) and word & 7 == 0:
            yield word


Recogniser = Callable[[Stack, Frame], Claim | None]
