"""Lists of waiters, walked so that neither a torn list nor a wild pointer can mislead.

A waiter is proven by the list itself: its neighbours point back to it, it lies on the stack of the
task that it names, and going round from it one meets exactly one node that is no waiter, which is
the head inside the lock. Since 7.1 mutexes, rwsems and semaphores have no head any more: they point
to their first waiter, so the lock is the one that points into the ring.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.tasks import Tasks

MAX_WAITERS = 1 << 20


@dataclass(frozen=True, slots=True)
class Ring:
    """``waiters`` (node, task) in the order of the list, from the head or the first waiter on."""

    head: int | None
    waiters: tuple[tuple[int, int], ...] = field(default=())

    def tasks(self) -> tuple[int, ...]:
        """Addresses of the waiting tasks, first come first."""
        return tuple(task for _node, task in self.waiters)

    def starting_at(self, node: int) -> "Ring":
        """The same ring told from another waiter on."""
        at = next((i for i, (n, _task) in enumerate(self.waiters) if n == node), 0)
        return Ring(self.head, self.waiters[at:] + self.waiters[:at])


class Rings:
    """Rings by any of their nodes; each is walked once, however long the queue."""

    def __init__(self, memory: Memory, tasks: Tasks) -> None:
        self._memory, self._tasks = memory, tasks
        self._known: dict[int, Ring] = {}
        self._torn: set[tuple[int, int]] = set()

    def around(self, node: int, task_at: int) -> Ring | None:
        """The ring through ``node``, whose task stands ``task_at`` bytes behind a node.

        None when it is torn: a neighbour that does not point back, two heads, or no end.
        """
        if node not in self._known and (node, task_at) not in self._torn:
            met = set[int]()
            ring = self._walk(node, task_at, met)
            if ring is None:  # from each of them the walk would come to the same end
                self._torn.update((other, task_at) for other in met)
            else:
                self._known.update(dict.fromkeys((n for n, _task in ring.waiters), ring))
                self._known[node] = ring
        return self._known.get(node)

    def _walk(self, start: int, task_at: int, seen: set[int]) -> Ring | None:
        """The ring, None if torn; ``seen`` gets the nodes on the way."""
        memory = self._memory
        waiters: list[tuple[int, int]] = []
        head: int | None = None
        before = 0
        node = start
        try:
            while node not in seen:
                if len(seen) > MAX_WAITERS:
                    return None
                seen.add(node)
                following = memory.u64(node)
                if memory.u64(following + 8) != node:
                    return None
                owner = self._tasks.by_address.get(memory.u64(node + task_at))
                if owner is not None and owner.on_stack(node):
                    waiters.append((node, owner.address))
                elif head is None:
                    head, before = node, len(waiters)
                else:
                    return None
                node = following
        except MissingMemory:
            return None
        if node != start:
            return None
        return Ring(head, tuple(waiters[before:] + waiters[:before]))

    def pointing(
        self, ring: Ring, candidates: Iterable[int], first_at: int
    ) -> tuple[int, Ring] | None:
        """The one of ``candidates`` whose first waiter (``first_at`` bytes in) is in the ring."""
        nodes = {node for node, _task in ring.waiters}
        found: dict[int, Ring] = {}
        for lock in dict.fromkeys(candidates):
            try:
                first = self._memory.u64(lock + first_at)
            except MissingMemory:
                continue
            if first in nodes:
                found[lock] = ring.starting_at(first)
        return next(iter(found.items())) if len(found) == 1 else None
