"""What one recording leaves open is settled by executing the call again, or by nothing."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.lab.desk import Outcome, kwhy, program, truth_series
from tests.lab.judge import judge
from tests.lab.test_incidents import explain

from kwhy import lab
from kwhy.case.casefile import CaseFile
from kwhy.diagnose import again
from kwhy.diagnose.again import Again, Refused, execute
from kwhy.diagnose.fail import LOOSE
from kwhy.diagnose.rounds import held_of, open_session
from kwhy.lab.incidents import INCIDENTS, Incident
from kwhy.record.model import Call, SyscallRecord
from kwhy.record.rank import rank

OPEN = ("pipe_again", "mprotect_nomem")
"""Incidents whose recording fits several conditions."""

MARKED = "mkdir_rofs"
"""One more, whose call marks in an inode that it may be searched: executed again it goes another
way there. What decides is a call whose operands are not told."""

OVERWRITTEN = "clone3_inval"
"""And one whose arguments lie on the stack, with something else on it by the time of the exit."""

ASLEEP = "sockopt_ulp"
"""And one that sleeps in its middle, until modprobe has ended."""

Saved = Callable[[str], Path]


def settled(outcome: Outcome, incident: Incident) -> dict[str, Any]:
    """The verdict, which must be the right one by a second execution."""
    assert outcome.status == 0, outcome.out + outcome.err
    verdict = outcome.verdict
    assert judge(verdict, incident, truth_series("6.12"), lines=True).word == "right"
    assert verdict["confidence"] == "observed"
    assert verdict["evidence"]["emulated"] > 0
    assert any("executing the call again" in note for note in verdict["evidence"]["notes"])
    return verdict


@pytest.fixture(scope="module")
def saved(
    guests: Callable[[str], lab.Guest], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Saved]:
    """``saved("pipe_again")``: the case of an incident, explained live on 6.12; asked for once."""
    cases: dict[str, Path] = {}
    folder = tmp_path_factory.mktemp("again")

    def case(name: str) -> Path:
        if name not in cases:
            cases[name] = folder / f"{name}.kwhy"
            incident = INCIDENTS[name]
            outcome = explain(guests("6.12"), incident, "--save", str(cases[name]))
            verdict = settled(outcome, incident)
            values = [o["source"] for o in verdict["conditions"][-1]["operands"]]
            assert "executed" in values or name in (OVERWRITTEN, MARKED, ASLEEP)
            offline = kwhy("explain", str(cases[name]), "--json")
            assert verdict == offline.verdict
        return cases[name]

    yield case


SLOW = ("mprotect_nomem", OVERWRITTEN, ASLEEP)
"""For `make test-all`: settled in the same way as others here, or not always. What a guest does
while a call sleeps can make the execution another one, which is refused."""


def cases(*names: str) -> list[Any]:
    """Parameters of a test."""
    return [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in names]


@pytest.mark.parametrize("name", cases(*OPEN, OVERWRITTEN, MARKED, ASLEEP))
def test_an_open_case_is_settled_by_execution(saved: Saved, name: str) -> None:
    """Right and observed, its values from the execution; the case alone tells the same."""
    assert saved(name).is_file()


def test_the_call_of_a_process_that_ended_before_the_command(
    guests: Callable[[str], lab.Guest], tmp_path: Path
) -> None:
    """It is executed again as its process leaves; the case tells the same."""
    incident, path = INCIDENTS[OPEN[0]], tmp_path / "x.kwhy"
    words = ("fail", "--lab", guests("6.12").name, "--put", str(program(incident.name)))
    script = f"true; ./{incident.name} 2>&1 | cat >&2; true"
    outcome = kwhy(*words, "--json", "--save", str(path), "--", "sh", "-c", script)
    assert settled(outcome, incident) == kwhy("explain", str(path), "--json").verdict


def without(call: Call, victim: Call) -> Call:
    """The tree of a call with one call cut out."""
    children = [without(child, victim) for child in call.children if child is not victim]
    return replace(call, children=children)


@pytest.mark.parametrize("name", cases(*OPEN, MARKED, ASLEEP))
def test_an_execution_that_is_not_the_recorded_one_does_not_count(saved: Saved, name: str) -> None:
    """With one call cut out of the recording, one put in, or another result, it is refused."""
    session = open_session(CaseFile(saved(name)))
    recording = session.recording(0)
    record = recording.syscall(rank(recording, errno=INCIDENTS[name].errno)[0].index)
    held = held_of(session, 0, record)
    assert held is not None and record.entry is not None

    def refused(altered: SyscallRecord) -> bool:
        found = execute(session.kernel, session.code, altered, [], held)
        assert isinstance(found, Again | Refused)
        return isinstance(found, Refused) and "does not count" in found.note

    assert not refused(record)
    assert refused(replace(record, ret=record.ret - 1))
    calls = [call for call in record.entry.walk() if call is not record.entry]
    leaf = next(call for call in reversed(calls) if call.kind == "traced" and not call.children)
    assert refused(replace(record, entry=without(record.entry, leaf)))
    twice = deepcopy(record)
    assert twice.entry is not None
    twice.entry.children.append(replace(leaf, children=[]))
    assert refused(twice)


def test_what_is_not_compared_decides_nothing(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An execution settles nothing where the origin lies in what may have gone another way."""
    path = saved(OPEN[0])
    origin = kwhy("explain", str(path), "--json").verdict["origin"]["function"]
    monkeypatch.setattr(again, "UNCOMPARED", frozenset({origin}))
    verdict = kwhy("explain", str(path), "--json").verdict
    assert verdict["confidence"] == "ambiguous"
    assert LOOSE in verdict["evidence"]["notes"]
