"""Who was there first: a lock's owner, or the one who sleeps for it."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.ages import Ages
from kwhy.diagnose.hang.memory import Memory

OWNER, WAITER, SECOND = 0xFFFF_8881_0000_0000, 0xFFFF_8882_0000_0000, 10**9
SYMBOLS = {"tick_next_period": 0x1000, "runqueues": 0x20, "__per_cpu_offset": 0x2000}


class Clocks(Memory):
    """A kernel whose two clocks have run for an hour since they were set, the second for longer."""

    def __init__(self, age: int, slept: int) -> None:
        """``age`` of the owner and how long the waiter ``slept``, in seconds."""
        percpu = SimpleNamespace(named=lambda _name: [])
        self.kernel = cast(Any, SimpleNamespace(symbols=SimpleNamespace(percpu=percpu)))
        self.fields = {
            (OWNER, "start_time"): (3600 - age) * SECOND,
            (WAITER, "thread_info.cpu"): 1,
            (WAITER, "se.exec_start"): (7200 - slept) * SECOND,
            (0x20 + 0x400, "clock_task"): 7200 * SECOND,
        }
        self.words = {0x1000: 3600 * SECOND, 0x2008: 0x400}

    def symbol(self, name: str) -> int:
        return SYMBOLS[name]

    def first(self, type: str, *paths: str) -> str:
        return paths[0]

    def u64(self, address: int) -> int:
        return self.words[address]

    def value(self, type: str, address: int, path: str) -> int:
        try:
            return self.fields[address, path]
        except KeyError:
            raise MissingMemory(address) from None


@pytest.mark.parametrize(
    ("age", "slept", "younger"),
    [(5, 60, True), (60, 5, False), (60, 60, False), (59, 60, False), (3000, 3003, False)],
)
def test_younger_than_the_sleep(age: int, slept: int, younger: bool) -> None:
    """Only by more than two clocks may differ."""
    assert younger == Ages(Clocks(age, slept)).younger(OWNER, WAITER)


def test_what_is_not_known_proves_nothing() -> None:
    """A field that cannot be read, or a task that has not run since it moved to another CPU."""
    clocks = Clocks(5, 60)
    clocks.fields[WAITER, "se.exec_start"] = 0
    assert not Ages(clocks).younger(OWNER, WAITER)
    del clocks.fields[OWNER, "start_time"]
    assert not Ages(clocks).younger(OWNER, WAITER)
