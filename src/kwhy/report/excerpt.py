"""Source with the path marked, and instructions where there is no source."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len

from kwhy.report.page import Page, clean
from kwhy.verdict import Excerpt, Instruction, Mark, MarkKind

SIGNS: Final[dict[MarkKind, tuple[str, str, str]]] = {
    "path": ("*", "cyan", "ran"),
    "decides": (">", "bold red", "decided"),
    "skipped": ("-", "dim", "passed by"),
    "result": ("=", "magenta", "the result"),
}
"""Sign in the gutter, style, and its meaning for the legend."""

_TEXT: Final = 40  # columns for an instruction with a note beside it
_LONG: Final = 24  # lines; a longer excerpt is cut down to the surroundings of its marks
_NEAR: Final = 2  # lines around a mark that are kept
_TABS: Final = (8, 4)  # Documentation/process/coding-style.rst, and narrower where lines get cut
_OUTDENT: Final = re.compile(r"\s*(?:[A-Za-z_]\w*:(?!:)|#)")  # labels and directives


def legend(kinds: Sequence[MarkKind]) -> str:
    """What the signs in the gutter mean: ``* ran   > decided``."""
    return "   ".join(
        f"{sign} {meaning}" for kind, (sign, _, meaning) in SIGNS.items() if kind in kinds
    )


def digits(excerpt: Excerpt) -> int:
    """The columns that the excerpt's line numbers need."""
    return max(3, len(str(excerpt.first + len(excerpt.lines) - 1)))


@dataclass(frozen=True, slots=True)
class _Layout:
    """How source lines are shown: width of a tab, indentation left out, columns of the gutter."""

    tab: int
    margin: int
    digits: int

    def line(self, raw: str) -> str:
        """A source line as it is shown: tabs as blanks, control characters visible."""
        return self._full(raw.rstrip())[self._left_out(raw) :]

    def column(self, raw: str, characters: int) -> int:
        """Where the first ``characters`` of a source line end as it is shown."""
        return max(0, cell_len(self._full(raw[:characters])) - self._left_out(raw))

    def _full(self, raw: str) -> str:
        return clean(raw.expandtabs(self.tab))

    def _left_out(self, raw: str) -> int:
        text = self._full(raw)
        return min(self.margin, len(text) - len(text.lstrip(" ")))


def _layout(lines: Sequence[str], digits: int, width: int) -> _Layout:
    """Tabs as wide as in kernel style, or half of that where lines would be cut."""
    room = width - digits - 5
    for tab in _TABS:
        code = [line.expandtabs(tab) for line in lines if line.strip() and not _OUTDENT.match(line)]
        margin = min((len(line) - len(line.lstrip(" ")) for line in code), default=0)
        if all(cell_len(line) - margin <= room for line in code):
            break
    return _Layout(tab, margin, digits)


def draw(page: Page, excerpt: Excerpt, digits: int) -> None:
    """Add the excerpt's lines with numbers, signs, and underlines with their notes."""
    marks: dict[int, list[Mark]] = {}
    for mark in excerpt.marks:
        marks.setdefault(mark.line, []).append(mark)
    numbered = list(enumerate(excerpt.lines, excerpt.first))
    shown = set(_kept([number for number, _ in numbered], set(marks)))
    layout = _layout([text for number, text in numbered if number in shown], digits, page.width)
    gap = False
    for number, raw in numbered:
        if number not in shown:
            gap = True
            continue
        if gap and page.lines and page.lines[-1]:
            page.raw((" " * digits + " ...", "dim"))
        gap = False
        here = marks.get(number, [])
        sign, style, _ = SIGNS[_strongest(here)] if here else (" ", "", "")
        page.raw(
            (f"{number:>{digits}} ", "blue"),
            (sign, style),
            (" | ", "blue"),
            (layout.line(raw), style if sign == ">" else ("dim" if sign == "-" else "")),
        )
        for mark in here:
            _underline(page, mark, raw, layout)


def instructions(page: Page, path: Sequence[Instruction], function: str) -> None:
    """Add annotated instructions: offset, text, what was seen there."""
    offsets = [clean(i.offset.removeprefix(function)) for i in path]
    wide = max((cell_len(text) for text in offsets), default=0)
    body = max((cell_len(clean(i.text)) for i in path), default=0)
    for offset, insn in zip(offsets, path, strict=True):
        sign, style, _ = SIGNS[insn.kind]
        text = clean(" ".join(insn.text.split(None, 1)))
        note = clean(insn.note or "")
        beside = 8 + wide + 2 + min(body, _TEXT) + 3
        fits = beside + cell_len(note) <= page.width
        page.raw(
            (f"    {sign}", style),
            (" | ", "blue"),
            (f"{offset:<{wide}}  ", "blue"),
            (f"{text:<{min(body, _TEXT)}}" if note else text, style if sign == ">" else ""),
            (f"   {note}" if note and fits else "", style or "bold"),
        )
        if note and not fits:
            _note(page, note, wide + 4, style or "bold", 3)


def _strongest(marks: Sequence[Mark]) -> MarkKind:
    order: list[MarkKind] = ["decides", "result", "path", "skipped"]
    return min((mark.kind for mark in marks), key=order.index)


def _kept(numbers: Sequence[int], marked: set[int]) -> Iterator[int]:
    """The lines to show: all of a short excerpt, else those near a mark."""
    if len(numbers) <= _LONG:
        yield from numbers
        return
    near = {line + d for line in marked for d in range(-_NEAR, _NEAR + 1)}
    kept = [number for number in numbers if number in near]
    yield from kept or numbers[:_LONG]


def _underline(page: Page, mark: Mark, raw: str, layout: _Layout) -> None:
    """The line under a marked span: carets and the note, beside them or below."""
    style = SIGNS[mark.kind][1]
    room = page.width - layout.digits - 5
    note = clean(mark.note or "")
    if mark.column is None:
        start = layout.column(raw, len(raw) - len(raw.lstrip()))
        beside = False
    else:
        start = min(layout.column(raw, max(1, mark.column) - 1), room - 1)
        end = layout.column(raw, (mark.end_column or len(raw.rstrip()) + 1) - 1)
        length = max(1, min(end, room) - start)
        line = ("^" if mark.kind == "decides" else "-") * length
        beside = bool(note) and start + length + 1 + cell_len(note) <= room
        page.raw(
            (" " * (layout.digits + 2), ""),
            (" | ", "blue"),
            (" " * start + line + (f" {note}" if beside else ""), style),
        )
    if note and not beside:
        _note(page, note, start, style, layout.digits)


def _note(page: Page, note: str, start: int, style: str, digits: int) -> None:
    """A note below its span, wrapped, kept to the right of the bar."""
    room = page.width - digits - 5
    start = max(0, min(start, room - max(24, min(cell_len(note), room // 2))))
    inner = Page(width=room - start)
    inner.write((note, style))
    for line in inner.lines:
        page.raw((" " * (digits + 2), ""), (" | ", "blue"), (" " * start, ""), *line)
