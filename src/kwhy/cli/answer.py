"""The end of every verb that answers: the manual, the files that were asked for, the report."""

import argparse
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kwhy.verdict import JSON, Verdict

if TYPE_CHECKING:
    from kwhy.report.page import Page


class Kept(Protocol):
    """The part of ``Evidence`` that is needed here."""

    def answer(self, key: str, compute: Any) -> Any: ...

    def save(self, path: Path) -> None: ...


def finish(
    args: argparse.Namespace,
    evidence: Kept | None,
    draw: "Callable[[int], Page]",
    data: JSON,
    title: str,
) -> None:
    """Write the files that ``args`` ask for (``save``, ``html``) and print (``json``, ``color``).

    ``draw`` makes the report for a number of columns, ``data`` is the answer for programs. The
    case is written first, so that it exists also when the reader of the report goes away.
    """
    if evidence is not None and getattr(args, "save", None) is not None:
        evidence.save(args.save)
    if getattr(args, "html", None) is not None:
        from kwhy.report import html, terminal

        html.write(draw(terminal.WIDTH), title, args.html)
    if getattr(args, "json", False):
        from kwhy.report import json

        json.write(data)
    else:
        from kwhy.report import terminal

        terminal.display(draw, color=getattr(args, "color", "auto"))


def give(verdict: Verdict, evidence: Kept, args: argparse.Namespace) -> int:
    """The end of ``kwhy fail``; the result is the exit status: 0, or 1 when it is not sure."""
    from kwhy.report import calls, manual, terminal

    verdict = manual.attach(verdict, evidence)
    verdict = replace(verdict, call=calls.decode(verdict.call))
    data, title = verdict.to_json(), verdict.summary
    finish(args, evidence, functools.partial(terminal.render, verdict), data, title)
    return status(verdict.confidence)


def status(confidence: str) -> int:
    """The exit status of the contract for an answer that is as sure as that."""
    return 0 if confidence in ("observed", "deduced") else 1
