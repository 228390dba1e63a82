"""``kwhy explain CASE``: the verdict of a saved case again, worked out offline, without root."""

import argparse
from pathlib import Path

from kwhy.cli.target import add_color_argument, places
from kwhy.errors import UsageError

HELP = "Explain a saved case again: offline, without root, to the same verdict."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The case, and how to ask and to print."""
    parser.add_argument("case", metavar="CASE", type=Path, help="a file that --save wrote")
    parser.add_argument("--json", action="store_true", help="the verdict as one JSON object")
    parser.add_argument("--html", metavar="FILE", type=Path, help="the verdict as an HTML page")
    parser.add_argument("--syscall", metavar="NAME", help="explain a failure of this call instead")
    parser.add_argument("--errno", metavar="NAME", help="explain a failure with this error instead")
    for name, what in (("debuginfo", "debug symbols"), ("source", "source")):
        parser.add_argument(
            f"--{name}",
            metavar="PATH|auto|none",
            default="auto",
            help=f"where to look for {what} that the case does not hold",
        )
    add_color_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Explain and report; raises InputError for a damaged case."""
    from kwhy.record.errno import errno_number

    if args.errno and errno_number(args.errno) is None:
        raise UsageError(f"--errno: no error is called {args.errno!r}; give a name such as EIO")
    from kwhy.case.casefile import CaseFile
    from kwhy.cli import answer
    from kwhy.diagnose import rounds

    case = CaseFile(args.case)
    if case.facts.question.get("verb") == "hang":
        from kwhy.cli import hang

        return hang.give(case, args)
    if case.facts.question.get("verb") == "call":
        from kwhy.cli import call

        return call.give(case, args)
    if case.facts.question.get("verb") == "spin":
        from kwhy.cli import spin

        return spin.explain_saved(case, args)
    if case.facts.question.get("verb") == "watch":
        from kwhy.cli import watch

        return watch.explain_saved(case, args)
    asked = {"syscall": args.syscall, "errno": args.errno.upper() if args.errno else None}
    if any(asked.values()):  # another question than the one that the case was made for
        case.facts.question.update(asked)
    session = rounds.open_session(case, *places(args))
    return answer.give(rounds.answer(session).verdict, case, args)
