"""The report as an HTML file: escaped, complete, and told when it cannot be written."""

from pathlib import Path

import pytest

from kwhy.errors import UsageError
from kwhy.report import html
from kwhy.report.page import Page


def page() -> Page:
    made = Page()
    made.write(("error: ", "bold red"), ("if (a < b && c) { <script>", ""))
    return made


def test_foreign_text_is_escaped_and_styles_are_kept() -> None:
    """Nothing of a page becomes markup, neither in the body nor in the title."""
    text = html.text(page(), "a {b} <i>")
    assert "<title>a {b} &lt;i&gt;</title>" in text
    assert "if (a &lt; b &amp;&amp; c) { &lt;script&gt;" in text
    assert "font-weight: bold" in text
    assert "<script" not in text


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """One sentence with the file's name."""
    with pytest.raises(UsageError, match=r"cannot write .*missing"):
        html.write(page(), "title", tmp_path / "missing" / "x.html")
