"""Which stacks show an address."""

from kwhy.diagnose.hang.stacks import Shown, Stack
from kwhy.diagnose.hang.tasks import Task

LOCK = 0xFFFF_8880_0000_1000


def stack(number: int, *words: int) -> Stack:
    task = Task(number, number, number, "t", "D", False, range(0), 0, 0, 0, False, 0, 0, 0, 0)
    return Stack(task, words=words)


def test_stacks_that_show_an_address() -> None:
    """Each once, in their order, however often the word is there."""
    stacks = {7: stack(7, 0, LOCK, LOCK), 3: stack(3, LOCK + 8), 5: stack(5, 1, LOCK), 1: stack(1)}
    assert (7, 5) == Shown(stacks).on(LOCK)
    assert (3,) == Shown(stacks).on(LOCK + 8)
    assert () == Shown(stacks).on(LOCK - 8)


def test_no_stacks() -> None:
    """Nothing sleeps."""
    assert () == Shown({}).on(LOCK)
