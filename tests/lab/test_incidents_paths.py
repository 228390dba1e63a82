"""Every path that a verdict claims is one that the emulator really executed."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.lab.desk import SERIES, own_guest, truth_series
from tests.lab.referee import Range, Referee, Step, agrees, executions, qemu_arguments
from tests.lab.test_incidents import explain

from kwhy import lab
from kwhy.case import capture
from kwhy.lab.incidents import INCIDENTS, carriers

if find_spec("kwhy.cli.fail") is None:
    pytest.skip("kwhy fail is not there", allow_module_level=True)


class Symbols:
    """Kernel text by name, as the running kernel lists it; one name may stand for several."""

    def __init__(self, kallsyms: bytes) -> None:
        self.named: dict[str, list[Range]] = {}
        found = []
        for line in kallsyms.decode().splitlines():
            address, kind, name = line.split()[:3]
            if kind in "tTwW" and "[" not in line:
                found.append((int(address, 16), name))
        found.sort()
        starts = sorted({address for address, _ in found})
        size = {one: after - one for one, after in pairwise(starts)}
        for start, name in found:
            self.named.setdefault(name, []).append(Range(start, size.get(start, 1)))

    def code_of(self, function: str) -> list[Range]:
        """All that the compiler made of a function: its parts, clones and cold half as well."""
        pattern = re.compile(rf"{re.escape(function)}(\.(part|isra|constprop|cold)(\.\d+)?)*$")
        return [each for name in self.named if pattern.match(name) for each in self.named[name]]


@dataclass(frozen=True, slots=True)
class Court:
    """A guest and the referee who watches it."""

    guest: lab.Guest
    referee: Referee
    symbols: Symbols
    ranges: tuple[Range, ...]


@pytest.fixture(scope="module")
def courts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Court]]:
    """``courts("6.12")``: a guest of that series, watched; started when first asked for."""
    open_courts: dict[str, Court] = {}
    with ExitStack() as stack:

        def court(series: str) -> Court:
            if series not in open_courts:
                log = tmp_path_factory.mktemp("referee") / "exec.log"
                open_courts[series] = stack.enter_context(convene(series, log, _carriers(series)))
            return open_courts[series]

        yield court


def _carriers(series: str) -> set[str]:
    """All functions that may hold a truth."""
    known = truth_series(series)
    return {
        name
        for incident in INCIDENTS.values()
        for truth in (*incident.truths_in(known), *incident.roots_in(known))
        for name in carriers(truth.function)
    }


@contextmanager
def convene(series: str, log: Path, functions: Iterable[str]) -> Iterator[Court]:
    """A guest in which the referee watches ``functions``."""
    with own_guest(series, "scout", append="nokaslr") as scout, lab.open_link(scout) as link:
        symbols = Symbols(link.blob("kallsyms") or b"")
    ranges = tuple({each.start: each for f in functions for each in symbols.code_of(f)}.values())
    qemu = tuple(qemu_arguments(log, ranges))
    with own_guest(series, "court", append="nokaslr", qemu=qemu) as guest:
        qmp = guest.qmp()
        try:
            yield Court(guest, Referee(qmp.monitor, log, ranges), symbols, ranges)
        finally:
            qmp.close()


def claims(verdict: dict[str, Any], symbols: Symbols) -> list[tuple[int, list[Step]]]:
    """What the verdict's path claims: entry and steps of its origin, for each symbol of the name.

    A step's note begins with "taken" or "not taken"; a fault claims that the instruction ran.
    """
    found = []
    function = verdict["path"][0]["offset"].split("+")[0]
    for entry in symbols.named[function]:
        steps = []
        for instruction in verdict["path"]:
            name, _, offset = instruction["offset"].partition("+")
            base = entry if name == function else symbols.named[name][0]
            note = instruction.get("note") or ""
            taken = {"taken": True, "not taken": False}.get(note.partition(":")[0])
            steps.append(Step(base.start + int(offset, 16), taken))
        found.append((entry.start, steps))
    return found


QUICK = frozenset({"tcsetattr_orphan", "mmap_inval", "setns_perm", "kill_srch"})
"""Those of `make test`; `make test-all` checks every incident's path on every series."""

CASES = [
    pytest.param(
        series,
        name,
        marks=[] if series == "6.12" and name in QUICK else [pytest.mark.slow],
        id=f"{series}-{name}",
    )
    for series in SERIES
    for name in INCIDENTS
]


@pytest.mark.parametrize(("series", "name"), CASES)
def test_the_path_was_executed(
    courts: Callable[[str], Court], series: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every claimed branch ran, in that order and that way, in one execution of the origin."""
    court = courts(series)
    trace: list[int] = []

    # The log costs: it is on while the command is recorded, off while its failure is explained.
    @contextmanager
    def record_round(*args: Any, **options: Any) -> Iterator[Any]:
        with ExitStack() as stack:
            enter = partial(stack.enter_context, recorder(*args, **options))
            rounds: list[Any] = []
            trace.extend(court.referee.watch(lambda: rounds.append(enter())))
            yield rounds[0]

    recorder = capture.record_round
    monkeypatch.setattr(capture, "record_round", record_round)
    outcome = explain(court.guest, INCIDENTS[name])
    assert outcome.status in (0, 1), outcome.err
    verdict = outcome.verdict
    if outcome.status:
        pytest.skip("ambiguous: no single path is claimed")
    assert verdict.get("path"), "the verdict claims no path"
    for entry, steps in claims(verdict, court.symbols):
        runs = executions(trace, court.ranges, entry)
        if any(agrees(steps, run, court.referee.code) for run in runs):
            return
    lines = [f"{each['offset']} {each.get('note')}" for each in verdict["path"]]
    pytest.fail(f"never executed so ({verdict['origin']['function']}):\n" + "\n".join(lines))


def test_the_referee_watches_the_log_of_a_path(tmp_path: Path) -> None:
    """An action that runs nothing of what is watched leaves no trace of it."""
    log = tmp_path / "exec.log"
    answers: list[str] = []

    def monitor(line: str) -> str:
        answers.append(line)
        return ""

    assert Referee(monitor, _touched(log), [Range(1, 1)]).watch(lambda: None) == []
    assert answers == ["log exec,nochain", "log none"]


def _touched(path: Path) -> Path:
    path.touch()
    return path
