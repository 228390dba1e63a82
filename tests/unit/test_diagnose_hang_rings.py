"""Lists of waiters that are whole, torn, corrupt or without a head."""

import struct

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.rings import Rings
from kwhy.diagnose.hang.tasks import Task, Tasks

LOCK = 0xFFFF_8880_0000_0000
STACKS = 0xFFFF_C900_0000_0000
TASKS = 0xFFFF_8881_0000_0000
TASK_AT = 16  # struct mutex_waiter: list, task


class Words(Memory):
    """Memory of 8-byte words."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}

    def read(self, address: int, size: int) -> bytes:
        try:
            return struct.pack("<Q", self.words[address])[:size]
        except KeyError:
            raise MissingMemory(address) from None


class Crowd(Tasks):
    """Tasks with a stack each."""

    def __init__(self, count: int) -> None:
        self.by_address = {
            TASKS + 0x10000 * n: Task(
                TASKS + 0x10000 * n, n + 1, n + 1, "t", "D", False,
                range(STACKS + 0x10000 * n, STACKS + 0x10000 * n + 0x4000),
                STACKS + 0x10000 * n + 0x3000, 0, 0, False, 0, 0, 0, 0,
            )
            for n in range(count)
        }  # fmt: skip


def node(number: int) -> int:
    """The waiter on the stack of task ``number``."""
    return STACKS + 0x10000 * number + 0x3100


def queue(count: int, head: bool = True) -> Words:
    """``count`` waiters in a list, with or without a head in a lock."""
    memory = Words()
    nodes = ([LOCK] if head else []) + [node(n) for n in range(count)]
    for at, following in zip(nodes, nodes[1:] + nodes[:1], strict=True):
        memory.words[at] = following
        memory.words[following + 8] = at
    for n in range(count):
        memory.words[node(n) + TASK_AT] = TASKS + 0x10000 * n
    memory.words[LOCK + TASK_AT] = 0
    return memory


def tasks_of(memory: Words, count: int, start: int = 0) -> tuple[int, ...] | None:
    """The numbers of the waiting tasks, in order."""
    ring = Rings(memory, Crowd(count)).around(node(start), TASK_AT)
    return None if ring is None else tuple((t - TASKS) // 0x10000 for t in ring.tasks())


def test_queue_is_told_in_its_order_from_any_waiter() -> None:
    """Walking begins in the middle; the order is that of the list behind the head."""
    assert (0, 1, 2, 3) == tasks_of(queue(4), 4, start=2)


def test_head_lies_in_the_lock() -> None:
    """The node that is no waiter."""
    ring = Rings(queue(2), Crowd(2)).around(node(1), TASK_AT)
    assert LOCK == (ring and ring.head)


def test_neighbour_that_does_not_point_back() -> None:
    """A list that is just being changed proves nothing."""
    memory = queue(3)
    memory.words[node(2) + 8] = node(0)
    assert tasks_of(memory, 3) is None


def test_wild_pointer() -> None:
    """A pointer to nowhere ends the walk."""
    memory = queue(3)
    memory.words[node(1)] = 0xDEAD_BEEF
    assert tasks_of(memory, 3) is None


def test_ring_that_does_not_come_back() -> None:
    """A list bent into a ring that leaves its beginning out."""
    memory = queue(4)
    memory.words[node(3)] = node(1)
    memory.words[node(1) + 8] = node(3)
    assert tasks_of(memory, 4) is None


def test_two_heads() -> None:
    """Two nodes that are no waiters: a waiter's task has ended, or it is no such list."""
    memory = queue(3)
    memory.words[node(1) + TASK_AT] = 0x1234
    assert tasks_of(memory, 3) is None


def test_waiter_on_another_task_s_stack_is_none() -> None:
    """A node that names a task but lies elsewhere is not that task's."""
    memory = queue(3)
    memory.words[node(1) + TASK_AT] = TASKS
    assert tasks_of(memory, 3) is None


def test_ring_without_a_head() -> None:
    """Newer locks point to their first waiter: that is the lock, and the order begins there."""
    memory = queue(3, head=False)
    memory.words[LOCK + 0x10] = node(1)
    rings = Rings(memory, Crowd(3))
    ring = rings.around(node(0), TASK_AT)
    assert ring is not None
    found = rings.pointing(ring, [0x10, LOCK], 0x10)
    assert found is not None
    assert (LOCK, (node(1), node(2), node(0))) == (found[0], tuple(n for n, _ in found[1].waiters))


def test_two_locks_cannot_have_the_same_waiters() -> None:
    """Two candidates point into the ring: which is the lock is not known."""
    memory = queue(2, head=False)
    memory.words[LOCK + 0x10] = memory.words[LOCK + 0x110] = node(0)
    rings = Rings(memory, Crowd(2))
    ring = rings.around(node(0), TASK_AT)
    assert ring is not None
    assert rings.pointing(ring, [LOCK, LOCK + 0x100], 0x10) is None


def test_long_queue_is_walked_once() -> None:
    """Every waiter of a thousand gets the same ring."""
    rings = Rings(queue(1000), Crowd(1000))
    assert 1 == len({id(rings.around(node(n), TASK_AT)) for n in range(1000)})


class Counting(Words):
    """Counts what is read."""

    reads = 0

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        return super().read(address, size)


def test_long_torn_queue_is_walked_once() -> None:
    """Every waiter of a thousand is refused, without a walk for each."""
    memory = Counting()
    memory.words = queue(1000).words
    memory.words[node(999) + 8] = 0
    rings = Rings(memory, Crowd(1000))
    assert not [n for n in range(1000) if rings.around(node(n), TASK_AT)]
    assert memory.reads < 10 * 1000


def test_a_node_refused_as_one_kind_of_waiter_may_be_another() -> None:
    """Where the task stands in a node is part of the question."""
    rings = Rings(queue(3), Crowd(3))
    assert rings.around(node(1), TASK_AT + 8) is None
    assert rings.around(node(1), TASK_AT) is not None
