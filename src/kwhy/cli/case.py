"""``kwhy case show|check FILE``: what a saved case holds, and whether it is whole."""

import argparse
from pathlib import Path

from kwhy.errors import UsageError

HELP = "show or check a saved case"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``show`` and ``check``; ``redact`` and ``export`` answer that they are not built yet."""
    parser.add_argument("action", choices=["show", "check", "redact", "export"])
    parser.add_argument("case", metavar="CASE", type=Path, help="a file that --save wrote")


def run(args: argparse.Namespace) -> int:
    """Print what is in the case; raises InputError for one that is damaged or no case at all."""
    if args.action in ("redact", "export"):
        raise UsageError(f"kwhy case {args.action} is not built yet; there are: show, check")
    from kwhy.case.casefile import CaseFile

    case = CaseFile(args.case)
    if args.action == "check":
        case.check()
        print(f"{args.case}: whole")
        return 0
    from kwhy.case.summary import summary

    for label, value in summary(case):
        print(f"{label:<10} {value}")
    return 0
