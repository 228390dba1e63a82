"""Where a recorded call slept, and which of its sleeps an execution has come to."""

from types import SimpleNamespace
from typing import Any, cast

from kwhy.emulate.asleep import Sleeps, sleeps, waits
from kwhy.flow.cfg import Code
from kwhy.record.model import Call, SyscallRecord

NAMES = {1: "toy_call", 2: "wait_for_completion", 3: "schedule_timeout", 4: "schedule",
         5: "__cond_resched", 6: "__schedule", 7: "kfree", 8: "__wait_for_common"}  # fmt: skip
CODE = cast(Code, SimpleNamespace(name=NAMES.__getitem__))


def call(function: int, time: int, *children: Call, kind: Any = "traced") -> Call:
    return Call(function, 1000 + time, time, list(children), kind)


def record(entry: Call) -> SyscallRecord:
    return SyscallRecord(
        1, 1, "toy", 0, "toy", (), -1, 0, 100, [entry], False, [], 0, entry=entry
    )


def test_a_sleep_is_its_outermost_function_until_the_next_event() -> None:
    """What the scheduler calls in it is part of it; the last one ends with the call."""
    once = call(3, 20, call(4, 21, call(6, 22, kind="implicit")))
    entry = call(1, 10, call(2, 15, once), call(7, 40), call(4, 50))
    found = sleeps(CODE, record(entry))
    assert [(sleep.function, sleep.begin, sleep.end) for sleep in found] == [
        (3, 20, 40),
        (4, 50, 100),
    ]


def test_giving_way_is_no_sleep() -> None:
    """The processor is taken away in __cond_resched(), and nothing is waited for."""
    entry = call(1, 10, call(5, 20, call(6, 21, kind="implicit")), call(7, 30))
    assert sleeps(CODE, record(entry)) == []


def test_sleeps_are_met_in_order_and_by_the_place_that_they_were_called_from() -> None:
    """One that the execution does not come to is passed by; one that is not recorded ends it."""
    entry = call(1, 10, call(4, 20), call(7, 25), call(4, 30))
    met = Sleeps(sleeps(CODE, record(entry)))
    assert met.met(4, 7777) is None
    second = met.met(4, 1030)
    assert second is not None and second.begin == 30
    assert met.met(4, 1020) is None


def test_a_function_waits_by_itself_or_in_what_it_called_for_that() -> None:
    """Not where something far below happened to wait for a lock."""
    sleep = call(3, 20)
    waiting = call(2, 15, call(8, 16, sleep, kind="implicit"))
    assert waits(CODE, waiting)
    assert waits(CODE, call(1, 12, waiting))
    assert not waits(CODE, call(1, 10, call(7, 11, call(7, 12, waiting))))
