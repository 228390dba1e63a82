"""What the result of a callee hangs on, and what is known to end a loop."""

from types import SimpleNamespace
from typing import Any

import pytest

from kwhy.agent import sampling, tracefs
from kwhy.diagnose.spin_behind import look_behind
from kwhy.diagnose.spin_recover import recoveries
from kwhy.diagnose.spin_watch import Seen
from kwhy.record.samples import Sample
from kwhy.verdict.spin import Branch

KERNEL: Any = SimpleNamespace(symbols=SimpleNamespace(at=lambda address: None))
CALL, SITE = 0x1000, 0x1005


class Watched:
    """A watcher that gives what each moment's execution is to find."""

    def __init__(self, moments: list[dict[str, Any]], arguments: list[int]) -> None:
        self.moments = iter(moments)
        self.samples = [
            Sample(CALL, number, 0, False, (), {"rdi": value})
            for number, value in enumerate(arguments)
        ]

    def breakpoints(self, addresses: list[int], seconds: float) -> dict[int, Seen]:
        return {CALL: Seen(self.samples, len(self.samples), 0, None)}

    def clock(self, period: int, seconds: float) -> None:
        pass

    def decided(self, calls: list[Sample], site: int, right: Any) -> list[Any]:
        kept = next(self.moments, None)
        if kept is None or not right(kept["result"]):
            return []
        return [(calls[0], kept)]


def moment(reads: dict[str, list[int]], **more: Any) -> dict[str, Any]:
    return {"result": 1, "reads": reads, "inputs": ["rdi"], "clock": False, **more}


def hows(moments: list[dict[str, Any]], arguments: list[int]) -> tuple[set[str], str | None]:
    watched: Any = Watched(moments, arguments)
    found = look_behind(KERNEL, watched, CALL, SITE, lambda result: result == 1)
    return {each.how for each in found.operands}, found.missing


def test_a_result_whose_grounds_stay_stays() -> None:
    """The same memory with the same values at each moment, and the same argument."""
    same = [moment({"8192": [8, 5]}) for _ in range(3)]
    assert ({"constant"}, None) == hows(same, [1, 1, 1, 1])


def test_a_result_that_hangs_on_what_moves_does_not() -> None:
    """A counter in the callee, an argument that goes on, the clock: each may end it."""
    counting = [moment({"8192": [8, value]}) for value in (9, 8, 7)]
    assert "varying" in hows(counting, [1, 1, 1, 1])[0]
    same = [moment({"8192": [8, 5]}) for _ in range(3)]
    assert "counter" in hows(same, [1, 2, 3, 4])[0]
    timed = [moment({}, clock=True) for _ in range(3)]
    assert "varying" in hows(timed, [1, 1, 1, 1])[0]


def test_too_few_good_moments_settle_nothing() -> None:
    """Executions that give another result than the one that was seen are none."""
    torn = [moment({}, result=0) for _ in range(8)]
    assert hows(torn, [1, 1, 1, 1])[1] is not None
    assert hows([], [])[1] is not None


def branch(expr: str, wanted: bool) -> Branch:
    return Branch(
        file=None, line=None, function="f", expr=expr, always=not wanted, leaves=True, wanted=wanted
    )


def test_what_ends_a_loop_is_told() -> None:
    """By the functions that it is in, and by the signals that it looks for."""
    assert "trace" in recoveries(["tracing_read_pipe", "vfs_read"], [])[0]
    killed = recoveries(["f"], [branch("unlikely(fatal_signal_pending(current))", True)])
    assert "kill -9" in killed[0]
    assert () == recoveries(["f"], [branch("fatal_signal_pending(current)", False)])
    assert () == recoveries(["f"], [branch("state->done", True)])


INTERRUPTS = """            CPU0       CPU2
  0:         12          3   IO-APIC   2-edge      timer
LOC:        100         {}   Local timer interrupts
ERR:          0
"""


@pytest.mark.parametrize(("state", "ticks", "deaf"), [("R", 0, True), ("R", 1, False),
                                                      ("S", 0, False)])
def test_a_processor_without_interrupts_is_noticed(
    monkeypatch: pytest.MonkeyPatch, state: str, ticks: int, deaf: bool
) -> None:
    """A running thread on a processor whose interrupt counts stand still keeps them off."""
    count = iter(range(0, 10_000 * max(1, ticks), max(1, ticks)))
    monkeypatch.setattr(
        tracefs, "read_or", lambda path: INTERRUPTS.format(next(count) if ticks else 7)
    )
    monkeypatch.setattr(sampling, "DEAF", 0.05)
    here = {"tid": 7, "cpu": 2, "state": state}
    monkeypatch.setattr(sampling, "_thread_or_none", lambda tid: here)
    assert deaf == sampling.deaf(here)
    assert sampling.interrupts(1) is None
