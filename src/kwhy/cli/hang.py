"""``kwhy hang``: who waits for what, who holds it, and is it a deadlock?"""

import argparse
from pathlib import Path
from typing import Any

from kwhy.cli.target import add_target_arguments
from kwhy.errors import InputError, UsageError

HELP = "Explain what tasks wait for, who holds it, and whether that is a deadlock."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add_target_arguments(parser)
    parser.add_argument(
        "pids",
        metavar="PID",
        type=int,
        nargs="*",
        help="a process or thread (none: every task that looks stuck)",
    )


def run(args: argparse.Namespace) -> int:
    """Look, explain, report; the result is the exit status."""
    from kwhy.cli.connect import open_evidence

    if args.put:
        raise UsageError("kwhy hang runs nothing on the target: leave --put out")
    if args.html is not None:
        raise UsageError("--html is not built yet; use --json or --save")
    if any(pid < 0 for pid in args.pids):
        raise UsageError("a process number is 0 or more")
    with open_evidence(args) as evidence:
        if args.case is None:
            evidence.facts.question = {"verb": "hang", "pids": list(args.pids)}
        return give(evidence, args, _place(args.debuginfo), _place(args.source))


def give(evidence: Any, args: argparse.Namespace, debuginfo: Any, source: Any) -> int:
    """Explain ``evidence``, save the case if asked, print; the result is the exit status."""
    from kwhy.cli.connect import read_again
    from kwhy.diagnose.hang.explain import explain
    from kwhy.kernel.model import open_kernel
    from kwhy.report import hang, json

    question = evidence.facts.question
    pids = getattr(args, "pids", None) or question.get("pids") or []
    if not isinstance(pids, list) or not all(isinstance(pid, int) for pid in pids):
        raise InputError("the case's question is damaged: its process numbers are no numbers")
    kernel = open_kernel(evidence, debuginfo, source)
    verdict = explain(kernel, pids, lambda: read_again(evidence))
    if getattr(args, "save", None) is not None:
        evidence.save(args.save)
    if args.json:
        json.write(verdict)
    else:
        hang.show(verdict, color=args.color)
    return 0 if verdict.confidence in ("observed", "deduced") else 1


def _place(text: str) -> str | Path:
    return text if text in ("auto", "none") else Path(text)
