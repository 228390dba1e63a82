"""The verdict for programs: one JSON object on stdout, nothing else."""

import json
import sys
from typing import Protocol, TextIO

from kwhy.verdict import JSON


class Verdict(Protocol):
    """Of any kind."""

    def to_json(self) -> JSON:
        """The JSON object of the schema."""


def dumps(verdict: Verdict) -> str:
    """``verdict`` as JSON text, indented, ASCII only (so also safe to look at in a terminal)."""
    return json.dumps(verdict.to_json(), indent=2, ensure_ascii=True)


def write(verdict: Verdict, file: TextIO | None = None) -> None:
    """Print ``verdict`` and a newline to ``file`` (standard output)."""
    print(dumps(verdict), file=file or sys.stdout, flush=True)
