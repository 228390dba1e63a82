"""From a request for a file lock up to the lock that somebody has."""

import struct

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.file_locks import root
from kwhy.diagnose.hang.memory import Memory
from kwhy.kernel.types import TypeRef

LOCKS = 0xFFFF_8880_0000_0000
HEADS = 0xFFFF_8880_1000_0000
FIELDS = {"fl_blocker": 0, "fl_list": 8, "fl_blocked_member": 24}  # struct file_lock


class Tree(Memory):
    """Locks by number, all of them queued somewhere."""

    def __init__(self, blockers: dict[int, int]) -> None:
        """``blockers``: what stands in the way of each request."""
        self.words: dict[int, int] = {}
        for number in {*blockers, *blockers.values()}:
            self.words[lock(number)] = 0
            blocker = blockers.get(number)
            if blocker is not None:
                self.words[lock(number)] = lock(blocker)
                self.empty(lock(number) + FIELDS["fl_list"])
                self.pair(lock(number) + FIELDS["fl_blocked_member"], HEADS + 16 * number)
            else:
                self.pair(lock(number) + FIELDS["fl_list"], HEADS + 16 * number)

    def pair(self, one: int, other: int) -> None:
        """A list of a node and its head."""
        for node, neighbour in ((one, other), (other, one)):
            self.words[node] = self.words[node + 8] = neighbour

    def empty(self, node: int) -> None:
        """A node in no list: init_list_head()."""
        self.words[node] = self.words[node + 8] = node

    def type(self, name: str) -> TypeRef | None:
        return None  # a kernel before struct file_lock_core

    def offset(self, type: str, path: str) -> int:
        return FIELDS[path]

    def value(self, type: str, address: int, path: str) -> int:
        return self.u64(address + FIELDS[path])

    def read(self, address: int, size: int) -> bytes:
        try:
            return struct.pack("<Q", self.words[address])[:size]
        except KeyError:
            raise MissingMemory(address) from None


def lock(number: int) -> int:
    return LOCKS + 0x100 * number


def test_a_request_behind_requests_waits_for_the_lock_at_the_root() -> None:
    """However many stand between, and whichever is asked first."""
    tree = Tree({n: n - 1 for n in range(1, 5000)})
    assert {lock(0)} == {root(tree, lock(n), {}) for n in (1, 2, 4999)}
    known: dict[int, int] = {}
    assert {lock(0)} == {root(tree, lock(n), known) for n in range(4999, 0, -1)}


def test_a_tree_that_is_torn_has_no_root() -> None:
    """Round in a circle, or a request that was taken off its list."""
    assert 0 == root(Tree({1: 2, 2: 3, 3: 1}), lock(1), {})
    tree = Tree({1: 0, 2: 1})
    tree.empty(lock(1) + FIELDS["fl_blocked_member"])
    assert 0 == root(tree, lock(2), {})


def test_a_lock_that_nobody_has_any_more() -> None:
    """It is on no list of its file: who asked for it is being woken."""
    tree = Tree({1: 0})
    tree.empty(lock(0) + FIELDS["fl_list"])
    assert 0 == root(tree, lock(1), {})
