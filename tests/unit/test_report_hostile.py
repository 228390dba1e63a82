"""A case can be hostile in any text: whichever it is, the report stays text, in its width."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from kwhy.report import terminal
from kwhy.verdict import Verdict

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))
CLOSED = {"schema", "kind", "confidence"}  # keys with a fixed set of values: refused on reading
ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\r\n\x00\u202e\u2066\u200b\ud800"
NASTY = {"escapes": ESCAPES, "markup": "[bold]x[/] :smile: /* */ */ //", "wide": "漢" * 300, "": ""}


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in parsed JSON that holds a text."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        if isinstance(value, str) and key not in CLOSED:
            yield node, key
        elif isinstance(value, (dict, list)):
            yield from places(value)


@pytest.mark.parametrize("nasty", NASTY.values(), ids=NASTY.keys())
@pytest.mark.parametrize("name", ["ambiguous", "eio", "replaced"])
def test_one_nasty_text_anywhere(name: str, nasty: str) -> None:
    """Each text of a verdict in turn becomes nasty: no control character, no line too wide."""
    data = json.loads((GOLDEN / f"{name}.json").read_text())
    for holder, key in places(data):
        kept, holder[key] = holder[key], nasty
        text = terminal.plain(Verdict.from_json(data))
        holder[key] = kept
        lines = text.split("\n")
        assert not [c for line in lines for c in line if not c.isprintable()], (key, nasty)
        assert not [line for line in lines if cell_len(line) > terminal.WIDTH], (key, nasty)


@pytest.mark.parametrize("number", [1, 2**31, 2**63])
@pytest.mark.parametrize("name", NAMES)
def test_lines_far_away(name: str, number: int) -> None:
    """Line numbers that do not fit the excerpts are shown, not looked up."""
    data = json.loads((GOLDEN / f"{name}.json").read_text())

    def move(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key in ("line", "column", "end_column", "first") and isinstance(value, int):
                node[key] = number
            elif isinstance(value, (dict, list)):
                move(value)

    move(data)
    lines = terminal.plain(Verdict.from_json(data)).split("\n")
    assert not [line for line in lines if cell_len(line) > terminal.WIDTH]
