"""Layout: foreign text made harmless, wrapping, excerpts, and what goes to which output."""

import functools
import io
import json
from pathlib import Path

import pytest

from kwhy.report import excerpt, page, terminal
from kwhy.verdict import Excerpt, Instruction, Mark, Verdict

GOLDEN = Path(__file__).parent.parent / "golden"


def sample(name: str = "eio") -> Verdict:
    return Verdict.from_json(json.loads((GOLDEN / f"{name}.json").read_text()))


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("plain", "plain"),
        (r"\x1b[31m", "\x1b[31m"),
        (r"\x9b2J\x07\x0d\x0a", "\x9b2J\x07\r\n"),
        (r"\u202egnp.exe\u200b\u2028", "\u202egnp.exe\u200b\u2028"),
        (r"\udce9", "\udce9"),
        ("naïve 漢字", "naïve 漢字"),
    ],
)
def test_clean(expected: str, text: str) -> None:
    """What would move the cursor, recolour, reorder or break the output is shown instead."""
    assert expected == page.clean(text)


def test_wraps_between_words_and_hangs() -> None:
    """Running text breaks between words; later lines are indented by the hang."""
    sheet = page.Page(width=20)
    sheet.write(("one two three ", "bold"), ("four five six", ""), indent=2, hang=4)
    assert "  one two three four\n    five six\n" == sheet.text().plain


def test_long_word_breaks_after_a_slash() -> None:
    """A path that is longer than the line is broken where it can be, and nothing is lost."""
    sheet = page.Page(width=24)
    sheet.write(("a/long/path/that/does/not/fit/the/line.c", ""))
    lines = sheet.text().plain.splitlines()
    assert lines[0].endswith("/")
    assert "a/long/path/that/does/not/fit/the/line.c" == "".join(lines)


def test_wide_characters_count_twice() -> None:
    """Columns are counted as the terminal shows them."""
    assert page.cut("漢字漢字", 5) == "漢字…"


def test_ascii_output_has_no_other_characters() -> None:
    """An output that is not Unicode gets dashes, dots and escapes, and still every word."""
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    terminal.display(functools.partial(terminal.render, sample("hostile")), out, color="never")
    out.flush()
    assert b"perf_event_open(..., -1, 0, -1, 0x8)" in raw.getvalue()


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal NO_COLOR means no sequences; ``--color always`` overrules it."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    plain, forced = Terminal(), Terminal()
    terminal.display(functools.partial(terminal.render, sample()), plain, width=80)
    terminal.display(functools.partial(terminal.render, sample()), forced, color="always", width=80)
    assert "\x1b" not in plain.getvalue()
    assert "\x1b" in forced.getvalue()


def test_long_excerpt_keeps_what_is_marked() -> None:
    """Of a long function the marked lines and their neighbours are shown, gaps as dots."""
    part = Excerpt(
        file="f.c",
        first=100,
        lines=tuple(f"line_{n};" for n in range(100, 200)),
        marks=(Mark(line=110, kind="path"), Mark(line=190, kind="decides")),
    )
    sheet = page.Page()
    excerpt.draw(sheet, part, excerpt.digits(part))
    text = sheet.text().plain
    shown = [n for n in range(100, 200) if f"line_{n};" in text]
    assert [108, 109, 110, 111, 112, 188, 189, 190, 191, 192] == shown
    assert 1 == text.count("...")


def test_caret_stands_under_the_span_behind_tabs() -> None:
    """Columns count characters, tabs are shown as blanks: the carets still meet the text."""
    raw = "\tif (a\t&& bad)"
    column = raw.index("bad") + 1
    mark = Mark(line=1, kind="decides", column=column, end_column=column + 3)
    sheet = page.Page()
    excerpt.draw(sheet, Excerpt(file="f.c", first=1, lines=(raw,), marks=(mark,)), 3)
    code, carets = sheet.text().plain.splitlines()
    assert code.index("bad") == carets.index("^^^")


@pytest.mark.parametrize("column", [0, -5, 500])
def test_mark_outside_its_line_is_harmless(column: int) -> None:
    """A case may hold nonsense: a mark outside of the text does not break the report."""
    mark = Mark(line=1, kind="decides", column=column, end_column=column - 3, note="n")
    sheet = page.Page(width=40)
    excerpt.draw(sheet, Excerpt(file="f.c", first=1, lines=("x",), marks=(mark,)), 3)
    assert "n" in sheet.text().plain


def test_labels_do_not_widen_the_margin() -> None:
    """A label at the left edge is shown there; the code around it keeps its own margin."""
    lines = ("\t\tif (bad)", "\t\t\tgoto out;", "out:", "\t\treturn ret;")
    sheet = page.Page()
    excerpt.draw(sheet, Excerpt(file="f.c", first=7, lines=lines), 3)
    shown = [line.partition(" | ")[2] for line in sheet.text().plain.splitlines()]
    assert ["if (bad)", "        goto out;", "out:", "return ret;"] == shown


def test_tabs_get_narrower_before_lines_are_cut() -> None:
    """Deeply indented source is shown with tabs of four columns when that saves the text."""
    lines = ("if (a)", "\t\t\t\tdeep();", "\t\t\t\tx = " + "y" * 40 + ";")
    mark = Mark(line=2, kind="decides", column=5, end_column=11)
    sheet = page.Page(width=72)
    excerpt.draw(sheet, Excerpt(file="f.c", first=1, lines=lines, marks=(mark,)), 3)
    text = sheet.text().plain
    assert "…" not in text
    code, carets = text.splitlines()[1:3]
    assert code.index("deep()") == carets.index("^^^^^^")


def test_long_note_of_an_instruction_goes_below() -> None:
    """What was seen at an instruction is wrapped under it, never cut."""
    sheet = page.Page(width=60)
    note = "not taken: " + " ".join(f"word{n}" for n in range(12))
    excerpt.instructions(sheet, [Instruction(offset="f+0x1", text="je 0x10", note=note)], "f")
    text = sheet.text().plain
    assert "…" not in text
    assert all(f"word{n}" in text for n in range(12))
