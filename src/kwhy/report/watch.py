"""What each step changed of a data structure, value by value."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kwhy.emulate.picture import Change
from kwhy.report import words
from kwhy.report.page import Page

SCHEMA = "kwhy.watch/1"


@dataclass(frozen=True, slots=True)
class Moment:
    """A step: its command, how it ended (negative: a signal), and what it changed of the values.

    With ``hit`` (function, time in ns, cpu, tid) it is a moment while the command ran; the changes
    are those since the moment before.
    """

    command: tuple[str, ...]
    status: int
    output: str
    changes: Sequence[Change]
    values: int
    hit: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def render(expression: str, moments: Sequence[Moment], width: int = 80) -> Page:
    """The report as a page."""
    page = Page(width=max(40, width))
    seen = moments[-1].values if moments else 0
    page.write((f"{expression}", "bold"), (f": {words.count(seen, 'value')}", ""))
    number, quiet, hit = 1, 0, 0
    begun = 0
    for moment in moments:
        if moment.hit is None:
            if quiet:
                still = f"{words.count(quiet, 'hit')} at which nothing had changed"
                page.write((still, "dim"), indent=3)
            _moment(page, number, moment)
            number, quiet, hit = number + 1, 0, 0
            continue
        hit += 1
        begun = begun if hit > 1 else moment.hit["time"]
        if moment.changes:
            after = (moment.hit["time"] - begun) / 1e6
            where = f"  thread {moment.hit['tid']}, CPU {moment.hit['cpu']}, +{after:.3f} ms"
            page.heading(f"{number}.{hit} {moment.hit['function']}", where)
            _changes(page, moment)
        else:
            quiet += 1
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
    _changes(page, moment)
    for note in moment.notes:
        page.write((note, "dim"), indent=3, hang=7)


def _changes(page: Page, moment: Moment) -> None:
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
                "hit": None if moment.hit is None else dict(moment.hit),
                "notes": list(moment.notes),
            }
            for moment in moments
        ],
    }
