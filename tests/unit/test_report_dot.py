"""The graph of waits for Graphviz: who is in it, what is painted, and hostile names."""

import dataclasses
import json
import os
import re
import time
from pathlib import Path

import pytest

from kwhy.errors import UsageError
from kwhy.report import dot
from kwhy.verdict.hang import Verdict, Wait

GOLDEN = Path(__file__).parent.parent / "golden" / "hang" / "report.json"


def sample() -> Verdict:
    return Verdict.from_json(json.loads(GOLDEN.read_text()))


def test_draws_as_recorded() -> None:
    """A verdict gives exactly the recorded graph."""
    actual = dot.draw(sample()).source
    recorded = GOLDEN.with_suffix(".dot")
    if os.environ.get("KWHY_UPDATE_GOLDEN"):
        recorded.write_text(actual)
    assert recorded.read_text() == actual


def test_a_deadlock_is_a_red_ring() -> None:
    """Red arrows lead from each member through its wait to the next, and nowhere else."""
    verdict = sample()
    arrows = re.findall(r"(\w+) -> (\w+) \[.*color=red", dot.draw(verdict).source)
    (cycle,) = verdict.cycles
    of_task = {tid: wait.id for wait in verdict.waits for tid in wait.waiters}
    expected = set()
    for tid, following in zip(cycle, cycle[1:] + cycle[:1], strict=True):
        expected |= {
            (f"task{tid}", f"wait{of_task[tid]}"),
            (f"wait{of_task[tid]}", f"task{following}"),
        }
    assert sorted(expected) == sorted(arrows)


def test_every_waiter_has_a_node() -> None:
    """Each task that waits is named in the graph."""
    verdict = sample()
    source = dot.draw(verdict).source
    names = {task.tid: f" {task.comm}" for task in verdict.tasks}
    waiters = [tid for wait in verdict.waits for tid in wait.waiters]
    assert not [tid for tid in waiters if f"{tid}{names.get(tid, '')}" not in source]


@pytest.mark.parametrize(
    "name", ['a"; x -> y; "', "<b>bold</b>", "\\", "\\N", "a\nb\x1b[2J", "é:s"]
)
def test_names_are_only_text(name: str) -> None:
    """A process may call itself anything: the graph has the same nodes and arrows."""
    verdict = sample()
    tasks = tuple(dataclasses.replace(task, comm=name) for task in verdict.tasks)
    hostile = dataclasses.replace(verdict, tasks=tasks, summary=name)
    shape = [
        re.sub(r'label="(\\.|[^"\\])*"', "", s.source) for s in map(dot.draw, (verdict, hostile))
    ]
    assert shape[0] == shape[1]


def crowd(count: int) -> Verdict:
    """``count`` tasks that wait for one lock, and as many that wait in a chain."""
    verdict = sample()
    pattern, task = verdict.waits[0], verdict.tasks[0]

    def wait(number: int, waiters: tuple[int, ...], owner: int) -> Wait:
        return dataclasses.replace(
            pattern, id=number, waiters=waiters, owners=(owner,), candidates=(), behind=(),
            any_of=(), taken=(),
        )  # fmt: skip

    queue = wait(0, tuple(range(1, count + 1)), count + 1)
    chain = tuple(wait(n, (count + n,), count + n + 1) for n in range(1, count))
    tasks = tuple(dataclasses.replace(task, tid=n, pid=n) for n in range(1, 2 * count + 1))
    return dataclasses.replace(
        verdict, tasks=tasks, waits=(queue, *chain), cycles=(), possible=(), roots=()
    )


def test_a_queue_of_thousands_is_one_node() -> None:
    """However many wait for the same lock."""
    source = dot.draw(crowd(25_000)).source
    assert "25,000 tasks: 1 ruby, 2 ruby" in source
    assert len(re.findall(r"-> wait0\b", source)) == 1


def test_time_grows_with_the_number_of_tasks() -> None:
    """Ten times the tasks take about ten times as long, not a hundred times."""

    def seconds(count: int) -> float:
        verdict = crowd(count)
        began = time.process_time()
        dot.draw(verdict)
        return time.process_time() - began

    assert seconds(25_000) < 40 * max(seconds(2_500), 0.01)


def test_svg_needs_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Graphviz an SVG is refused in one line; DOT needs nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="install Graphviz, or give a name"):
        dot.write(sample(), tmp_path / "waits.svg")
    dot.write(sample(), tmp_path / "waits.dot")
    assert dot.draw(sample()).source == (tmp_path / "waits.dot").read_text()


def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Puts a program called dot first in PATH."""
    path = tmp_path / "dot"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_svg_is_what_the_program_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is asked for SVG and gets the graph."""
    program(tmp_path, monkeypatch, 'echo "$@"; cat')
    dot.write(sample(), tmp_path / "waits.svg")
    asked, graph = (tmp_path / "waits.svg").read_text().split("\n", 1)
    assert "-Tsvg" in asked.split()
    assert dot.draw(sample()).source == graph


def test_a_program_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is left where nothing was drawn."""
    program(tmp_path, monkeypatch, "exit 3")
    with pytest.raises(UsageError, match="failed with status 3"):
        dot.write(sample(), tmp_path / "waits.svg")
    assert not (tmp_path / "waits.svg").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """One line says so."""
    with pytest.raises(UsageError, match="cannot write"):
        dot.write(sample(), tmp_path / "none" / "waits.dot")
