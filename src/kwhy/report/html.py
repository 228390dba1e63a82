"""A report as one HTML file, to attach to a ticket: what the terminal shows, with its colours."""

import html
import io
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import MONOKAI, TerminalTheme

from kwhy.errors import UsageError
from kwhy.report.page import Page

_THEME: Final[TerminalTheme] = MONOKAI

# Doubled braces are rich's: it fills in the rest.
_FILE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>TITLE</title>
<style>
{stylesheet}
body {{ color: {foreground}; background: {background}; margin: 1.5em; }}
pre {{ font: 14px/1.35 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
</style>
</head>
<body>
<pre><code>{code}</code></pre>
</body>
</html>
"""


def text(page: Page, title: str) -> str:
    """The HTML of a page. All foreign text in it is escaped; it loads nothing from elsewhere."""
    console = Console(
        record=True,
        file=io.StringIO(),
        width=page.width,
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )
    console.print(page.text(), end="", soft_wrap=True)
    safe = html.escape(title).replace("{", "{{").replace("}", "}}")
    return console.export_html(theme=_THEME, code_format=_FILE.replace("TITLE", safe))


def write(page: Page, title: str, path: Path) -> None:
    """Write the file; raises UsageError when that is not possible."""
    try:
        path.write_text(text(page, title), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
