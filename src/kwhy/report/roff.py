"""The little of roff that manual pages need: their ERRORS section as plain paragraphs.

Understands man(7) as the Linux man-pages project writes it, and the list macros of mdoc(7).
Anything else is passed over: a paragraph that reads well matters, its layout does not.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

_ERRNO: Final = re.compile(r"E[A-Z0-9]{2,}")

# groff_char(7): the named characters that occur in the pages of sections 2, 3 and 7.
_NAMED: Final = {
    "aq": "'", "dq": '"', "oq": "‘", "cq": "’", "lq": "“", "rq": "”", "em": "—", "en": "–",
    "hy": "-", "ti": "~", "ha": "^", "rs": "\\", "ga": "`", "bu": "•", "co": "©", "mu": "×",
    "+-": "±", "<=": "≤", ">=": "≥", "->": "→", "<-": "←", "de": "°", "at": "@", "sh": "#",
    "Do": "$", "lB": "[", "rB": "]", "lC": "{", "rC": "}", "ba": "|", "or": "|", "sl": "/",
}  # fmt: skip
_ESCAPE: Final = re.compile(
    r"""\\(?:
        ["\#].*                                        # a comment to the end of the line
      | f(?:\[[^\]]*\]|\(..|.)                         # fonts
      | s(?:\[[^\]]*\]|[-+]?\d{1,2}|\([-+]?\d\d)       # sizes
      | m(?:\[[^\]]*\]|\(..|.)                         # colours
      | [*](?:\[(?P<string>[^\]]*)\]|\((?P<string2>..)|.)   # strings
      | \[(?P<long>[^\]]*)\] | \((?P<two>..)           # characters by name
      | [hvwo]'[^']*'                                  # motions
      | (?P<one>.)
      | $
    )""",
    re.VERBOSE,
)
_SINGLE: Final = {
    "-": "-",
    "e": "\\",
    "\\": "\\",
    " ": " ",
    "~": " ",
    "0": " ",
    "'": "'",
    "`": "`",
    ".": ".",
}
_FONTS: Final = {"B", "I", "BR", "RB", "IR", "RI", "BI", "IB", "SM", "SB", "R", "MR"}
_BREAKS: Final = {"PP", "P", "LP", "IP", "HP", "Pp"}
_MDOC_WORDS: Final = {
    "Er",
    "Fa",
    "Fn",
    "Xr",
    "Dv",
    "Em",
    "Ar",
    "Pa",
    "Va",
    "Vt",
    "Sy",
    "Ev",
    "Li",
    "Cm",
}
_CLOSING: Final = re.compile(r"^[.,;:)!?\]]+$")


@dataclass(slots=True)
class Entry:
    """One entry of an ERRORS list: the errnos it is about and its paragraphs.

    ``context`` is the sentence that introduced this part of the list, when it limits it ("The
    following errors are specific to UNIX domain sockets:").
    """

    errnos: tuple[str, ...]
    context: str = ""
    paragraphs: list[str] = field(default_factory=list)


def inline(text: str) -> str:
    """``text`` without roff escapes."""

    def replace(match: "re.Match[str]") -> str:
        name = match["long"] or match["two"] or match["string"] or match["string2"]
        if name:
            if name.startswith("u") and re.fullmatch(r"u[0-9A-F]{4,5}", name):
                return chr(int(name[1:], 16))
            return _NAMED.get(name, "")
        return _SINGLE.get(match["one"] or "", "")

    return _ESCAPE.sub(replace, text)


def arguments(rest: str) -> list[str]:
    """The arguments of a macro line: blank-separated, quotes hold one together, "" is a quote."""
    found = []
    for match in re.finditer(r'"((?:[^"]|"")*)"?|((?:\\.|[^ \t])+)', rest):
        quoted, bare = match.groups()
        if bare is not None and bare.startswith('\\"'):
            break  # the rest is a comment
        found.append(quoted.replace('""', '"') if quoted is not None else bare)
    return found


def redirect(source: str) -> str | None:
    """The page that a ``.so man2/open.2`` page stands for; None for a real page."""
    for line in source.splitlines():
        if line.startswith((".so ", "'so ")):
            return line[4:].strip()
        if line and not line.startswith((".\\", "'\\")):
            return None
    return None


def section(source: str, title: str) -> list[str]:
    """The source lines of the section ``title`` (upper case), subsections included."""
    lines: list[str] = []
    inside = False
    for line in source.splitlines():
        name, rest = _macro(line)
        if name in ("SH", "Sh"):
            inside = " ".join(arguments(rest)).upper() == title
        elif inside:
            lines.append(line)
    return lines


def errors(lines: list[str]) -> list[Entry]:
    """The entries of an ERRORS section (or of any tagged list whose tags are errno names)."""
    entries: list[Entry] = []
    context = ""
    current: Entry | None = None
    paragraph: list[str] = []

    def close() -> None:
        nonlocal context
        text = _join(paragraph)
        paragraph.clear()
        if not text:
            return
        if current is not None:
            current.paragraphs.append(text)
        else:
            listed = any(entry.errnos for entry in entries)
            context = text if listed and text.endswith(":") else ""

    expect_tag = False
    for name, text in _logical(lines):
        if expect_tag and text:
            expect_tag = False
            close()
            current = _tagged(entries, text, context, paragraph, more=name == "TQ")
        elif name in ("TP", "TQ"):
            expect_tag = True
        elif name in ("It", "IP") and _ERRNO.search(text):
            close()
            current = _tagged(entries, text, context, paragraph, more=False)
        elif name in _BREAKS or name in ("SS", "Ss"):
            close()
            if name not in ("IP", "HP"):
                current = None
            if name in ("SS", "Ss"):
                context = ""
        elif text:
            paragraph.append(text)
    close()
    return entries


def _tagged(
    entries: list[Entry], tag: str, context: str, paragraph: list[str], *, more: bool
) -> Entry:
    """Open the entry of a tag line such as ``EAGAIN or EWOULDBLOCK (since Linux 3.1)``."""
    names = tuple(re.findall(r"\bE[A-Z0-9]{2,}\b", tag))
    if more and entries and not entries[-1].paragraphs:
        entries[-1].errnos += names
        return entries[-1]
    entry = Entry(names, context)
    entries.append(entry)
    remark = re.search(r"\(.*\)", tag)
    if remark and names:
        paragraph.append(remark[0])
    return entry


def _logical(lines: list[str]) -> Iterator[tuple[str, str]]:
    """(macro, text) of each line: "" for running text, fonts resolved, comments gone."""
    for line in lines:
        name, rest = _macro(line)
        if not name:
            yield "", inline(line) if not line.startswith(("'\\", ".\\")) else ""
        elif name in _FONTS:
            yield "", _fonts(name, rest)
        elif name in _MDOC_WORDS:
            yield "", _mdoc(name, rest)
        elif name in ("It", "IP"):
            words = " ".join(word for word in arguments(rest) if word not in _MDOC_WORDS)
            yield name, inline(words)
        elif name in ("TP", "TQ", "SS", "Ss") or name in _BREAKS:
            yield name, ""
        # .RS .nf .in .EX and the like: layout only


def _macro(line: str) -> tuple[str, str]:
    match = re.match(r"[.'][ \t]*([A-Za-z]{1,3})(?:[ \t]+(.*))?$", line)
    return (match[1], match[2] or "") if match else ("", "")


def _fonts(name: str, rest: str) -> str:
    words = [inline(word) for word in arguments(rest)]
    if name == "MR" and len(words) >= 2:  # groff 1.23: .MR page section punctuation
        return f"{words[0]}({words[1]}){''.join(words[2:])}"
    alternates = len(name) == 2 and name not in ("SM", "SB")
    return ("" if alternates else " ").join(words)


def _mdoc(name: str, rest: str) -> str:
    words = [inline(word) for word in arguments(rest) if word not in _MDOC_WORDS]
    tail = "".join(word for word in words if _CLOSING.match(word))
    words = [word for word in words if not _CLOSING.match(word)]
    if name == "Xr" and len(words) == 2:
        return f"{words[0]}({words[1]}){tail}"
    return " ".join(words) + ("()" if name == "Fn" else "") + tail


def _join(parts: list[str]) -> str:
    return re.sub(r"\s+", " ", " ".join(parts)).strip()
