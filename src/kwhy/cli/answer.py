"""The end of every verb that answers: the manual, the saved case, the report, the status."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from kwhy.verdict import Verdict


class Kept(Protocol):
    """The part of ``Evidence`` that is needed here."""

    def answer(self, key: str, compute: Any) -> Any: ...

    def save(self, path: Path) -> None: ...


def give(verdict: Verdict, evidence: Kept, args: argparse.Namespace) -> int:
    """Print ``verdict`` as ``args`` ask (``json``, ``color``), write the files they ask for.

    ``save`` names the case, ``html`` the report as a page.

    The result is the exit status: 0 for a verdict, 1 when it is ambiguous or unknown. The case is
    written first, so that it exists also when the reader of the report goes away.
    """
    from kwhy.report import calls, manual

    verdict = manual.attach(verdict, evidence)
    verdict = replace(verdict, call=calls.decode(verdict.call))
    if getattr(args, "save", None) is not None:
        evidence.save(args.save)
    if getattr(args, "html", None) is not None:
        from kwhy.report import html, terminal

        html.write(terminal.render(verdict), verdict.summary, args.html)
    show(verdict, args)
    return status(verdict)


def show(verdict: Verdict, args: argparse.Namespace) -> None:
    """Print ``verdict`` on standard output."""
    if getattr(args, "json", False):
        from kwhy.report import json

        json.write(verdict)
    else:
        from kwhy.report import terminal

        terminal.show(verdict, color=getattr(args, "color", "auto"))


def status(verdict: Verdict) -> int:
    """The exit status of the contract for ``verdict``."""
    return 0 if verdict.confidence in ("observed", "deduced") else 1
