"""``kwhy hang``: who waits for what, who holds it, and is it a deadlock?"""

import argparse
import functools
from pathlib import Path
from typing import Any

from kwhy.cli import answer
from kwhy.cli.target import add_target_arguments, places
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
    parser.add_argument(
        "--dot",
        metavar="FILE",
        type=Path,
        help="the graph of waits in Graphviz's language; a FILE.svg is drawn by its dot program",
    )


def run(args: argparse.Namespace) -> int:
    """Look, explain, report; the result is the exit status."""
    from kwhy.cli.connect import open_evidence
    from kwhy.cli.limit import within
    from kwhy.report import dot

    if args.put:
        raise UsageError("kwhy hang runs nothing on the target: leave --put out")
    if any(pid < 0 for pid in args.pids):
        raise UsageError("a process number is 0 or more")
    if args.dot is not None:
        dot.check(args.dot)
    # Features are not tried: to leave a trace instance waits for RCU, which may be what hangs.
    with within(args.timeout), open_evidence(args, probe=False) as evidence:
        if args.case is None:
            evidence.facts.question = {"verb": "hang", "pids": list(args.pids)}
        return give(evidence, args)


def give(evidence: Any, args: argparse.Namespace) -> int:
    """Explain ``evidence``, save the case if asked, print; the result is the exit status."""
    from kwhy.cli.connect import read_again
    from kwhy.diagnose.hang.explain import explain
    from kwhy.kernel.model import open_kernel
    from kwhy.report import dot, hang

    question = evidence.facts.question
    pids = getattr(args, "pids", None) or question.get("pids") or []
    if not isinstance(pids, list) or not all(isinstance(pid, int) for pid in pids):
        raise InputError("the case's question is damaged: its process numbers are no numbers")
    kernel = open_kernel(evidence, *places(args))
    verdict = explain(kernel, pids, lambda: read_again(evidence))
    if getattr(args, "dot", None) is not None:
        dot.write(verdict, args.dot)
    draw = functools.partial(hang.render, verdict)
    answer.finish(args, evidence, draw, verdict.to_json(), verdict.summary)
    return answer.status(verdict.confidence)
