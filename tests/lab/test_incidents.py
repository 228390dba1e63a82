"""``kwhy fail`` on every incident, on every kernel: right, or honestly ambiguous, and never wrong.

One guest per series serves all its incidents. The table at the end of the run tells what each
verdict was.
"""

import json
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import CELL
from tests.lab.desk import SERIES, Outcome, kwhy, program, truth_series
from tests.lab.judge import judge, tell

from kwhy import lab
from kwhy.lab.incidents import INCIDENTS, NAMED, Incident

if find_spec("kwhy.cli.fail") is None:
    pytest.skip("kwhy fail is not there", allow_module_level=True)

Guests = Callable[[str], lab.Guest]

SCHEMA = Path(__file__).parents[2] / "src/kwhy/report/schema/verdict-1.json"


Note = Callable[[str, object], None]
"""Writes down a property of a test; pytest's fixture ``record_property``."""


@cache
def validator() -> Any:
    """Checks a verdict against the published schema."""
    import jsonschema

    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))


def explain(guest: lab.Guest, incident: Incident, *options: str) -> Outcome:
    """``kwhy fail`` on the incident's program, as a user would do it."""
    path = str(program(incident.name))
    return kwhy(
        *("fail", "--lab", guest.name, "--put", path, "--json", "--timeout", "120"),
        *(*incident.options, *options),
        *("--", f"./{incident.name}"),
    )


def check(
    guests: Guests, name: str, series: str, way: str, note: Note, *options: str
) -> dict[str, Any]:
    """Explain, validate, judge; fails the test when the verdict is wrong."""
    incident = INCIDENTS[name]
    try:
        outcome = explain(guests(series), incident, *options)
        assert outcome.status in (0, 1), outcome.err
        verdict = outcome.verdict
        problems = [error.message for error in validator().iter_errors(verdict)]
        assert problems == []
        found = judge(verdict, incident, truth_series(series), lines="none" not in options)
    except BaseException:
        note(CELL, (name, way, series, "failed"))
        raise
    how = f" {verdict['confidence']}" if found.word == "right" else ""
    note(CELL, (name, way, series, f"{found.word}{how}"))
    assert found.word in ("right", "ambiguous"), f"{name} on {series}: {found.why}"
    assert (found.word == "right") == (outcome.status == 0)
    return verdict


# A test run has minutes: on 6.12 all that was promised by name and some more, on the others and
# the other ways a few; `make test-all` takes everything.
QUICK = frozenset({
    "tcsetattr_orphan", "open_mode", "bind_inuse", "kill_srch", "iouring_memlock",
})  # fmt: skip
MORE = frozenset({
    "exec_path", "tiocspgrp_fault", "retry_open", "noisy_unlink", "ioctl_notty", "fcntl_deadlk",
    "pipe_broken", "unshare_threads", "rename_ancestor",
})  # fmt: skip


def marks(series: str, name: str) -> list[pytest.MarkDecorator]:
    """Slow, but for the quick ones, and on 6.12 the named ones and some more."""
    wanted = QUICK | MORE | frozenset(NAMED) if series == "6.12" else QUICK
    return [] if name in wanted else [pytest.mark.slow]


CASES = [
    pytest.param(
        series,
        name,
        marks=marks(series, name),
        id=f"{series}-{name}",
    )
    for series in SERIES
    for name in INCIDENTS
]
NAMED_CASES = [
    pytest.param(
        series,
        name,
        marks=[] if series == "6.12" and name in QUICK else [pytest.mark.slow],
        id=f"{series}-{name}",
    )
    for series in SERIES
    for name in NAMED
]


@pytest.mark.parametrize(("series", "name"), CASES)
def test_one_run(guests: Guests, series: str, name: str, record_property: Note) -> None:
    """With debug information and source: the right call, origin and deciding condition."""
    check(guests, name, series, "one run", record_property)


@pytest.mark.parametrize(("series", "name"), NAMED_CASES)
def test_repeated(guests: Guests, series: str, name: str, record_property: Note) -> None:
    """Three runs leave nothing open: the deciding branch was observed."""
    verdict = check(guests, name, series, "--repeat 3", record_property, "--repeat", "3")
    assert verdict["confidence"] == "observed", tell(verdict)


@pytest.mark.parametrize(("series", "name"), NAMED_CASES)
def test_without_debug_information(
    guests: Guests, series: str, name: str, record_property: Note
) -> None:
    """With BTF and live code alone: the right function, a branch by its offset, and no line."""
    verdict = check(
        *(guests, name, series, "--debuginfo none", record_property),
        *("--debuginfo", "none", "--source", "none"),
    )
    answers = verdict["candidates"] or [verdict]
    for answer in answers:
        assert answer["origin"]["line"] is None
        assert answer["conditions"][-1]["offset"]
