"""The looks of a report are pinned: every ``tests/golden/NAME.json`` renders as ``NAME.txt``.

After a change that is meant: ``KWHY_UPDATE_GOLDEN=1 pytest tests/unit/test_report_golden.py``, then
read the diff.
"""

import functools
import io
import json
import os
import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from kwhy.report import schema, terminal
from kwhy.verdict import Verdict

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))


def load(name: str) -> Verdict:
    return Verdict.from_json(json.loads((GOLDEN / f"{name}.json").read_text()))


@pytest.mark.parametrize("name", NAMES)
def test_renders_as_recorded(name: str) -> None:
    """A verdict renders to exactly the recorded text."""
    actual = terminal.plain(load(name))
    recorded = GOLDEN / f"{name}.txt"
    if os.environ.get("KWHY_UPDATE_GOLDEN"):
        recorded.write_text(actual)
    assert recorded.read_text() == actual


@pytest.mark.parametrize("name", NAMES)
def test_sample_is_a_valid_verdict(name: str) -> None:
    """The samples themselves keep to the published schema, and survive a round trip."""
    data = json.loads((GOLDEN / f"{name}.json").read_text())
    schema.validate(data)
    assert data == Verdict.from_json(data).to_json()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("name", NAMES)
def test_fits_the_width(name: str, width: int) -> None:
    """No line is wider than asked for, whatever the names and paths."""
    lines = terminal.plain(load(name), width).splitlines()
    assert not [line for line in lines if cell_len(line) > width]


@pytest.mark.parametrize("name", NAMES)
def test_no_control_characters(name: str) -> None:
    """A pipe gets newlines and printable characters: no escape sequences, nothing trailing."""
    text = terminal.plain(load(name))
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert not [line for line in text.splitlines() if line != line.rstrip()]


@pytest.mark.parametrize("name", NAMES)
def test_colour_changes_no_words(name: str) -> None:
    """With colour the same text is printed, and foreign text brings no sequences of its own."""
    out = io.StringIO()
    terminal.display(functools.partial(terminal.render, load(name)), out, color="always", width=80)
    bare = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert terminal.plain(load(name)) == bare
