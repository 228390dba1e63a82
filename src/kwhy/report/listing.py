"""A disassembly for a person: each source line, then its instructions."""

from kwhy.diagnose.listing import Listing, Row
from kwhy.report.page import Page

_TEXT = 44
"""Columns of an instruction at most, before the column of what it refers to."""


def render(found: Listing, texts: dict[str, list[str]], around: int | None, width: int) -> Page:
    """``texts`` are the lines of source files; ``around``: so many instructions on either side of
    the asked address, None: all."""
    page = Page(width=width)
    symbol, rows = found.symbol, found.rows
    module = f" [{symbol.module}]" if symbol.module else ""
    page.raw((f"{symbol.name}{module}", "bold"), (f"  {symbol.address:#x}", "dim"))
    here = max((i for i, row in enumerate(rows) if row.address <= found.asked), default=0)
    first = max(0, here - around) if around is not None else 0
    last = here + around + 1 if around is not None else len(rows)
    if first:
        page.raw(("...", "dim"))
    wide = max((len(row.text) for row in rows[first:last] if row.note), default=0)
    place: tuple[str, int, str] | None = None
    for number, row in enumerate(rows[first:last], first):
        now = _place(row)
        if now is not None and now != place:
            _source(page, now, texts)
        place = now
        marked = found.asked != symbol.address and number == here
        _instruction(page, row, min(wide, _TEXT), marked)
    if last < len(rows):
        page.raw(("...", "dim"))
    return page


def _place(row: Row) -> tuple[str, int, str] | None:
    if not row.frames or not row.frames[0].line:
        return None
    frame = row.frames[0]
    return frame.file, frame.line, frame.function if len(row.frames) > 1 else ""


def _source(page: Page, place: tuple[str, int, str], texts: dict[str, list[str]]) -> None:
    file, line, inlined = place
    lines = texts.get(file, [])
    text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    into = f" in {inlined}()" if inlined else ""
    page.raw((f"{file}:{line}{into}", "cyan"), (f"  {text}" if text else "", ""))


def _instruction(page: Page, row: Row, wide: int, marked: bool) -> None:
    mark = "=>" if marked else "  "
    text = f"{row.text:<{wide}}" if row.note else row.text
    page.raw(
        (f"  {mark} +{row.offset:<#6x} ", "bold red" if marked else "blue"),
        (text, "bold" if marked else ""),
        (f"  {row.note}" if row.note else "", "green"),
    )
