"""What each step changed of a data structure, value by value."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kwhy.emulate.picture import Change
from kwhy.report import words
from kwhy.report.page import Page

SCHEMA = "kwhy.watch/1"


@dataclass(frozen=True, slots=True)
class Moment:
    """A step: its command, how it ended (negative: a signal), and what it changed of the values."""

    command: tuple[str, ...]
    status: int
    output: str
    changes: Sequence[Change]
    values: int


def render(expression: str, moments: Sequence[Moment], width: int = 80) -> Page:
    """The report as a page."""
    page = Page(width=max(40, width))
    seen = moments[-1].values if moments else 0
    page.write((f"{expression}", "bold"), (f": {words.count(seen, 'value')}", ""))
    for number, moment in enumerate(moments, 1):
        _moment(page, number, moment)
    return page


def step(number: int, moment: Moment, width: int = 80) -> Page:
    """One step as a page, for who watches it happen."""
    page = Page(width=max(40, width))
    _moment(page, number, moment)
    return page


def _moment(page: Page, number: int, moment: Moment) -> None:
    ended = f"  (status {moment.status})" if moment.status else ""
    page.heading(f"{number}. {shlex.join(moment.command)}", ended)
    if not moment.changes:
        page.write(("nothing changed", "dim"), indent=3)
    gone: dict[str, None] = {}
    for change in moment.changes:
        structure, _, field = change.path.partition(".")
        if change.after is None and "@" in structure and field:
            gone[structure] = None
        else:
            _change(page, change)
    for structure in gone:
        page.write((structure, ""), ("  no pointer leads there any more", "dim"), indent=3, hang=7)


def _change(page: Page, change: Change) -> None:
    before = "(not there)" if change.before is None else change.before
    after = "(not there)" if change.after is None else change.after
    page.write(
        (change.path, ""), (f"  {before}", "red"), (" → ", "dim"), (after, "green"),
        indent=3, hang=7,
    )  # fmt: skip


def as_json(expression: str, moments: Sequence[Moment]) -> dict[str, Any]:
    """The answer for programs, schema ``kwhy.watch/1``."""
    return {
        "schema": SCHEMA,
        "expression": expression,
        "steps": [
            {
                "command": list(moment.command),
                "status": moment.status,
                "changes": [asdict(change) for change in moment.changes],
            }
            for moment in moments
        ],
    }
