"""An answer for programs: one JSON object on stdout, nothing else."""

import json
import sys
from typing import TextIO

from kwhy.verdict import JSON


def dumps(data: JSON) -> str:
    """``data`` as JSON text, indented, ASCII only (so also safe to look at in a terminal)."""
    return json.dumps(data, indent=2, ensure_ascii=True)


def write(data: JSON, file: TextIO | None = None) -> None:
    """Print ``data`` and a newline to ``file`` (standard output)."""
    print(dumps(data), file=file or sys.stdout, flush=True)
