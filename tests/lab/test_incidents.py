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
from tests.lab.desk import SERIES, Outcome, kwhy, program, truth_series
from tests.lab.judge import judge, tell

from kwhy import lab
from kwhy.lab.incidents import INCIDENTS, NAMED, Incident

if find_spec("kwhy.cli.fail") is None:
    pytest.skip("kwhy fail is not there", allow_module_level=True)

Guests = Callable[[str], lab.Guest]

SCHEMA = Path(__file__).parents[2] / "src/kwhy/report/schema/verdict-1.json"


class Table:
    """Collects the judgements and prints them when the run ends."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, str]] = {}

    def note(self, incident: str, way: str, series: str, word: str) -> None:
        """One cell: a judgement's word and, when it is right, the confidence."""
        self.rows.setdefault((way, incident), {})[series] = word

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """A hook of pytest's: the end of the output."""
        for way in sorted({way for way, _ in self.rows}):
            rows = {name: cells for (each, name), cells in self.rows.items() if each == way}
            terminalreporter.section(f"kwhy fail: {way}")
            terminalreporter.line(f"{'':20}" + "".join(f"{series:>22}" for series in SERIES))
            for name, cells in sorted(rows.items()):
                line = "".join(f"{cells.get(series, '-'):>22}" for series in SERIES)
                terminalreporter.line(f"{name:20}{line}")
            for series in SERIES:
                words = [cells[series].split()[0] for cells in rows.values() if series in cells]
                if words:
                    tally = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))
                    terminalreporter.line(f"{series}: {tally}")


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    """The table of this run."""
    found = Table()
    request.config.pluginmanager.register(found, "kwhy-incidents")
    return found


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
    guests: Guests, name: str, series: str, way: str, table: Table, *options: str
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
        table.note(name, way, series, "failed")
        raise
    table.note(name, way, series, f"{found.word} {verdict['confidence'] * (found.word == 'right')}")
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
def test_one_run(guests: Guests, series: str, name: str, table: Table) -> None:
    """With debug information and source: the right call, origin and deciding condition."""
    check(guests, name, series, "one run", table)


@pytest.mark.parametrize(("series", "name"), NAMED_CASES)
def test_repeated(guests: Guests, series: str, name: str, table: Table) -> None:
    """Three runs leave nothing open: the deciding branch was observed."""
    verdict = check(guests, name, series, "--repeat 3", table, "--repeat", "3")
    assert verdict["confidence"] == "observed", tell(verdict)


@pytest.mark.parametrize(("series", "name"), NAMED_CASES)
def test_without_debug_information(guests: Guests, series: str, name: str, table: Table) -> None:
    """With BTF and live code alone: the right function, a branch by its offset, and no line."""
    verdict = check(
        guests, name, series, "--debuginfo none", table, "--debuginfo", "none", "--source", "none"
    )
    answers = verdict["candidates"] or [verdict]
    for answer in answers:
        assert answer["origin"]["line"] is None
        assert answer["conditions"][-1]["offset"]
