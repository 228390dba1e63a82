"""The report of ``kwhy hang``: pinned looks, any width, hostile names.

After a change that is meant: ``KWHY_UPDATE_GOLDEN=1 pytest tests/unit/test_report_hang.py``, then
read the diff.
"""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from rich.cells import cell_len

from kwhy.report import hang, schema
from kwhy.verdict.hang import Argument, Frame, Verdict

GOLDEN = Path(__file__).parent.parent / "golden" / "hang" / "report.json"


def sample() -> Verdict:
    return Verdict.from_json(json.loads(GOLDEN.read_text()))


def plain(verdict: Verdict, width: int = 80) -> str:
    return hang.render(verdict, width).text().plain


def test_renders_as_recorded() -> None:
    """A verdict renders to exactly the recorded text."""
    actual = plain(sample())
    recorded = GOLDEN.with_suffix(".txt")
    if os.environ.get("KWHY_UPDATE_GOLDEN"):
        recorded.write_text(actual)
    assert recorded.read_text() == actual


def test_sample_is_a_valid_verdict() -> None:
    """The sample keeps to the published schema, and survives a round trip."""
    data = json.loads(GOLDEN.read_text())
    schema.validate(data)
    assert data == Verdict.from_json(data).to_json()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_fits_the_width(width: int) -> None:
    """No line is wider than asked for."""
    lines = plain(sample(), width).splitlines()
    assert not [line for line in lines if cell_len(line) > width]


def test_what_a_parameter_has_become_is_not_shown_as_passed() -> None:
    """Debug symbols tell a variable's present value, which the function may have assigned."""
    frame = Frame(
        function="signalfd_read",
        offset="0x1c7",
        args=(
            Argument(name="ppos", value="NULL", source="kept in r12"),
            Argument(name="count", value="1", source="by debug symbols", now=True),
        ),
    )
    verdict = sample()
    tasks = tuple(dataclasses.replace(task, stack=(frame,)) for task in verdict.tasks)
    changed = dataclasses.replace(verdict, tasks=tasks)
    schema.validate(changed.to_json())
    text = plain(changed)
    assert "      ppos = NULL  (kept in r12)" in text
    assert "      count is now 1  (by debug symbols)" in text


def test_headline_comes_first() -> None:
    """The answer is the first sentence."""
    assert plain(sample(), 200).startswith(f"hang: {sample().summary}")


def test_names_cannot_control_the_terminal() -> None:
    """A process may call itself anything."""
    verdict = sample()
    tasks = tuple(dataclasses.replace(task, comm="\x1b[2Jx") for task in verdict.tasks)
    text = plain(dataclasses.replace(verdict, tasks=tasks))
    assert not [c for c in text if not c.isprintable() and c != "\n"]


def test_a_thousand_alike_are_one_line() -> None:
    """Tasks that wait for the same are counted, a few are named."""
    verdict = sample()
    crowd = tuple(range(1000, 2000))
    (queue,) = [root for root in verdict.roots if root.kind in ("running", "ready")]
    wait = next(w for w in verdict.waits if set(w.waiters) & set(queue.waiting))
    waits = tuple(dataclasses.replace(w, waiters=crowd) if w is wait else w for w in verdict.waits)
    roots = tuple(
        dataclasses.replace(root, waiting=crowd) if root is queue else root
        for root in verdict.roots
    )
    text = plain(dataclasses.replace(verdict, waits=waits, roots=roots), 200)
    assert "  1,000 tasks wait for mutex" in text
    assert "and 994 more" in text


def test_a_long_cycle_is_drawn_in_part() -> None:
    """The first members and the last, and how many are between them."""
    verdict = sample()
    ring = next(root for root in verdict.roots if root.kind == "deadlock")
    long = dataclasses.replace(ring, tids=tuple(range(1000, 6000)))
    drawn = plain(dataclasses.replace(verdict, roots=(long,)), 200).splitlines()
    assert [n for n in range(1000, 6000) if f"  |   {n}" in drawn] == [*range(1001, 1011), 5999]
    assert "  |   4,988 more tasks, each waiting for the next" in drawn
    assert len(drawn) < 200
