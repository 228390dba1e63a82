"""The options that name a target and those common to every verb that asks one."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from kwhy.errors import UsageError


@dataclass(frozen=True)
class PutFile:
    """A file to copy into the target's working directory before the command starts."""

    local: Path
    remote: str | None


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """``--host``, ``--lab``, ``--core`` or ``--case`` (none: this host) and the common options."""
    group = parser.add_argument_group("target (none: this host)")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--host", metavar="[USER@]HOST", help="a machine reached by ssh")
    one.add_argument(
        "--lab", metavar="VERSION", help="a Debian kernel in a QEMU guest (6.12), or a named guest"
    )
    one.add_argument(
        "--core", metavar="VMCORE", type=Path, help="a kernel dump, or a QEMU guest's QMP socket"
    )
    one.add_argument("--case", metavar="FILE", type=Path, help="a saved case")
    add_put_argument(group)
    add_common_arguments(parser)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What every verb that gives a verdict understands."""
    group = parser.add_argument_group("common options")
    group.add_argument("--save", metavar="FILE", type=Path, help="keep all the evidence as a case")
    group.add_argument("--json", action="store_true", help="the verdict as one JSON object")
    group.add_argument("--html", metavar="FILE", type=Path, help="the verdict as an HTML page")
    group.add_argument(
        "--debuginfo",
        metavar="PATH|auto|none",
        default="auto",
        help="where the kernel's debug symbols are (auto: look in the usual places)",
    )
    group.add_argument(
        "--source",
        metavar="PATH|auto|none",
        default="auto",
        help="where the kernel's source is (auto: the distribution's source package)",
    )
    group.add_argument(
        "--timeout",
        metavar="S",
        type=positive_seconds,
        default=None,
        help="give up after S seconds",
    )
    add_color_argument(group)
    group.add_argument("-v", "--verbose", action="count", default=0, help="say what is being done")


def add_put_argument(parser: argparse._ActionsContainer) -> None:
    """``--put LOCAL[:REMOTE]``, repeatable."""
    parser.add_argument(
        "--put",
        metavar="LOCAL[:REMOTE]",
        type=put_file,
        action="append",
        default=[],
        help="first copy a file into the target's working directory (repeatable)",
    )


def add_color_argument(parser: argparse._ActionsContainer) -> None:
    """``--color WHEN``."""
    parser.add_argument(
        "--color",
        metavar="WHEN",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto (a terminal, and NO_COLOR unset), always or never",
    )


def put_file(text: str) -> PutFile:
    """Parse ``LOCAL[:REMOTE]``; a local file whose own name holds a colon wins."""
    if Path(text).exists() or ":" not in text:
        return PutFile(Path(text), None)
    local, remote = text.split(":", 1)
    return PutFile(Path(local), remote or None)


def positive_seconds(text: str) -> float:
    """A number of seconds above zero."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be above zero")
    return value


def place(text: str) -> str | Path:
    """Where debug symbols or source are: "auto", "none" or a path."""
    return text if text in ("auto", "none") else Path(text)


def places(args: argparse.Namespace) -> tuple[Any, Any]:
    """What ``--debuginfo`` and ``--source`` say."""
    return place(args.debuginfo), place(args.source)


def teller(args: argparse.Namespace) -> Callable[[str], None]:
    """Says what is being done, where somebody watches or asked for it (``-v``)."""
    shown = args.verbose or sys.stderr.isatty()

    def say(text: str) -> None:
        if shown:
            print(f"kwhy: {text}", file=sys.stderr, flush=True)

    return say


def check_put_files(files: list[PutFile]) -> None:
    """Refuse early, before a guest boots for nothing."""
    for file in files:
        if not file.local.is_file():
            raise UsageError(f"--put: no file {str(file.local)!r} here")


def use_color(when: str, stream: TextIO | None = None) -> bool:
    """Whether to write colours to ``stream`` (stdout): ``--color``, then NO_COLOR, then the tty."""
    if when != "auto":
        return when == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return (stream or sys.stdout).isatty()
