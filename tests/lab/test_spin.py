"""``kwhy spin`` against the truth of threads that spin in known ways."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.lab.desk import kwhy
from tests.lab.spinning import insert, spin, spinning

from kwhy import lab
from kwhy.lab.spins import (
    CONTROL,
    SETTINGS,
    WAIT_CONTROL,
    WAITS,
    WAYS,
    Way,
)
from kwhy.report.schema import validate

pytestmark = pytest.mark.lab

Start = Callable[[str], lab.Guest]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """``start("6.12")``: a guest with the modules in it and a processor to burn."""
    running: dict[str, lab.Guest] = {}
    with ExitStack() as stack:

        def guest(series: str) -> lab.Guest:
            if series not in running:
                while running:
                    running.popitem()[1].stop()
                guest = running[series] = stack.enter_context(
                    lab.start(series, f"spin-{os.getpid()}-{series}", replace(SETTINGS, keep=False))
                )
                insert(guest)
            return running[series]

        yield guest


def judge(way: Way, verdict: dict[str, Any]) -> None:
    """Whether an answer is the truth."""
    validate(verdict)
    assert way.state == verdict["state"], verdict["summary"]
    if way.state == "lock":
        assert way.function == verdict["lock"]["wanted_by"]
        assert verdict["lock"]["name"].startswith(("spin_state", "wait_state"))
        return
    if way.state == "unknown":
        assert "interrupts off" in verdict["summary"]
        return
    assert way.function == verdict["loop"]["function"]
    if way.state == "looping":
        assert "unknown" == verdict["confidence"]
        return
    if any("RCU grace period" in note for note in verdict["evidence"]["notes"]):
        assert "deduced" == verdict["confidence"]
        assert (None, None) == (verdict["loop"]["entry_hits"], verdict["loop"]["exit_hits"])
    else:
        assert "observed" == verdict["confidence"]
        assert verdict["loop"]["head_hits"] > 0
        assert (0, 0) == (verdict["loop"]["entry_hits"], verdict["loop"]["exit_hits"])
    ways = {branch["expr"]: branch["always"] for branch in verdict["branches"]}
    if way.condition is not None:
        assert way.always == ways.get(way.condition), ways
    assert way.decides in (None, *(c["function"] for c in verdict["calls"] if c["decides"]))


def check_all(
    guest: lab.Guest, ways: tuple[Way, ...], tmp_path: Path, control: str = CONTROL
) -> None:
    for way in ways:
        with spinning(guest, f"echo {way.name} > {control}") as tid:
            case = tmp_path / f"{way.name}.kwhy"
            answer = spin(guest, tid, "--save", str(case))
            judge(way, answer.verdict)
        again = kwhy("explain", str(case), "--json")
        assert answer.verdict == again.verdict
        # A kernel that complains is not the one that the truth is about, and may well die of it.
        assert "BUG:" not in guest.console_log.read_text(errors="replace")


def test_spin_names_the_loop(start: Start, tmp_path: Path) -> None:
    """A list that is a circle, a decoy that is slow, two callees that contradict each other, and a
    flag that a callee will raise: each is told for what it is, from the live guest and from the
    case."""
    chosen = tuple(way for way in WAYS if way.name in ("circle", "slow", "masked"))
    check_all(start("6.12"), chosen, tmp_path)
    raised = tuple(way for way in WAITS if way.name == "raised")
    check_all(start("6.12"), raised, tmp_path, WAIT_CONTROL)


def test_a_thread_that_does_not_spin_is_said_so(start: Start) -> None:
    """A sleeping thread, one in user space, one that enters and leaves the kernel, and none."""
    guest = start("6.12")
    with spinning(guest, "exec sleep 100") as tid:
        assert "asleep" == spin(guest, tid).verdict["state"]
    with spinning(guest, "while :; do :; done") as tid:
        assert "user" == spin(guest, tid).verdict["state"]
    with spinning(guest, "exec dd if=/dev/zero of=/dev/null bs=1M") as tid:
        assert "busy" == spin(guest, tid).verdict["state"]
    gone = kwhy("spin", "99999", "--lab", guest.name)
    assert 1 == gone.status
    assert "there is no" in gone.err


@pytest.mark.slow
@pytest.mark.parametrize("series", ["5.10", "6.1", "6.12", "7"])
def test_every_way_on_every_kernel(start: Start, series: str, tmp_path: Path) -> None:
    """All ways to spin, judged by the truth."""
    check_all(start(series), WAYS, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("series", ["5.10", "6.1", "6.12", "7"])
def test_every_wait_on_every_kernel(start: Start, series: str, tmp_path: Path) -> None:
    """Loops that wait for what never comes, and for what comes late: those are never endless."""
    check_all(start(series), WAITS, tmp_path, WAIT_CONTROL)
