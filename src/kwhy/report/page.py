"""Text laid out in columns: safe, wrapped, styled, and the same with or without a terminal.

Everything that a case holds (program names, kernel log, source) is foreign text. It enters a page
through ``clean``, so that no escape sequence in it reaches the reader's terminal.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from rich.cells import cell_len
from rich.text import Text

Piece = tuple[str, str]
"""Text and its style (a rich style; "" for none)."""

# Cc control, Cf format (bidirectional overrides, zero width), Cs surrogate, Co private,
# Cn unassigned, Zl and Zp line separators.
_HOSTILE: Final = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SHORT: Final = 16  # columns left on a line in which it is not worth to begin a longer word
_ASCII: Final = str.maketrans(
    {"—": "-", "–": "-", "…": "...", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "•": "*",
     "‘": "'", "’": "'", "“": '"', "”": '"', "±": "+-"}
)  # fmt: skip


def clean(text: str) -> str:
    r"""``text`` with what a terminal would act on made visible: ESC becomes ``\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(char) for char in text)


def _visible(char: str) -> str:
    if char == "\t":
        return " "
    if unicodedata.category(char) not in _HOSTILE:
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def ascii_only(text: str) -> str:
    """``text`` for an output that can show no more: dashes, quotes replaced, the rest escaped."""
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns, the end replaced by an ellipsis."""
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) >= width:
        text = text[:-1]
    return text + "…"


@dataclass(slots=True)
class Page:
    """Lines of styled pieces, at most ``width`` columns wide."""

    width: int = 80
    lines: list[list[Piece]] = field(default_factory=list)

    def blank(self) -> None:
        """An empty line, unless one is there or nothing is yet."""
        if self.lines and self.lines[-1]:
            self.lines.append([])

    def heading(self, title: str, rest: str = "") -> None:
        """The title of a section, behind an empty line."""
        self.blank()
        self.write((title, "bold"), (rest, ""), hang=2)

    def raw(self, *pieces: Piece) -> None:
        """One line as it is, cut at the width: for source text and tables."""
        room = self.width
        line: list[Piece] = []
        for text, style in pieces:
            shown = cut(clean(text), room) if room else ""
            room = max(0, room - cell_len(shown))
            if shown:
                line.append((shown, style))
        self.lines.append(_trimmed(line))

    def write(self, *pieces: Piece, indent: int = 0, hang: int | None = None) -> None:
        """Running text, wrapped between words. ``hang`` indents all lines but the first."""
        hang = indent if hang is None else hang
        line: list[Piece] = [(" " * indent, "")]
        used = indent
        for words, style in pieces:
            for word in re.findall(r"\S+|\s+", clean(words)):
                blank = word.isspace()
                fits_a_line = cell_len(word) <= self.width - hang
                if used + cell_len(word) > self.width and fits_a_line:
                    self.lines.append(_trimmed(line))
                    line, used = [(" " * hang, "")], hang
                    if blank:
                        continue
                for part in _parts(word, self.width - used, self.width - hang):
                    if used + cell_len(part) > self.width:
                        self.lines.append(_trimmed(line))
                        line, used = [(" " * hang, "")], hang
                    line.append((part, style))
                    used += cell_len(part)
        self.lines.append(_trimmed(line))

    def text(self, *, ascii: bool = False) -> Text:
        """The page for rich to print; ``ascii`` for an output that can show no more."""
        page = Text()
        for line in self.lines:
            for text, style in line:
                page.append(ascii_only(text) if ascii else text, style=style or None)
            page.append("\n")
        return page


def _parts(word: str, first: int, width: int) -> Iterable[str]:
    """``word`` in pieces of ``first`` and then ``width`` columns, cut after a slash or such."""
    if cell_len(word) <= first:
        return [word]
    parts = []
    room = first if first > _SHORT else width
    while cell_len(word) > room:
        at = max(1, room)
        while at > 1 and cell_len(word[:at]) > room:
            at -= 1
        soft = max(word.rfind(mark, at // 2, at) for mark in "/,_:;=.")
        at = soft + 1 if soft > 0 else at
        parts.append(word[:at])
        word, room = word[at:], width
    return [*parts, word]


def _trimmed(line: list[Piece]) -> list[Piece]:
    """``line`` without blanks at its end."""
    while line and not line[-1][0].rstrip(" "):
        line = line[:-1]
    if line:
        text, style = line[-1]
        line = [*line[:-1], (text.rstrip(" "), style)]
    return line
