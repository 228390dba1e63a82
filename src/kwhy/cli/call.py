"""``kwhy call``: what does this kernel function return, and why?"""

import argparse
import functools
from typing import Any

from kwhy.cli import answer
from kwhy.cli.target import add_target_arguments, places
from kwhy.errors import InputError, UsageError

HELP = (
    "Run a kernel function offline, on a copy of the target's memory, and tell why it answers so."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add_target_arguments(parser)
    parser.add_argument(
        "call", metavar="'FUNC(ARG, ...)'", nargs="?", help="C-like: variables, fields, casts, &x"
    )
    parser.add_argument(
        "--syscall", metavar="'NAME(ARG, ...)'", help="a dry run of a system call, as --task"
    )
    parser.add_argument("--why", action="store_true", help="tell which branches and values decided")
    parser.add_argument("--trace", action="store_true", help="list what was executed")
    parser.add_argument("--cpu", metavar="N", type=int, help="as if on this CPU (0)")
    parser.add_argument("--task", metavar="PID", type=int, help="as if this task ran it")


def run(args: argparse.Namespace) -> int:
    """Read, run, report; the result is the exit status."""
    from kwhy.cli.connect import open_evidence

    if args.put:
        raise UsageError("kwhy call runs nothing on the target: leave --put out")
    if "" in (args.call, args.syscall) or (args.call or args.syscall or args.case) is None:
        raise UsageError("say what to call: kwhy call TARGET 'FUNC(ARG, ...)'")
    if args.call is not None and args.syscall is not None:
        raise UsageError("a function or --syscall, not both")
    if args.syscall is not None and args.task is None and args.case is None:
        raise UsageError("--syscall needs a task to make the call: --task PID")
    with open_evidence(args, probe=False) as evidence:
        asked = {
            "verb": "call",
            "call": args.call or args.syscall,
            "syscall": args.syscall is not None,
            "cpu": args.cpu,
            "task": args.task,
            "why": args.why,
            "trace": args.trace,
        }
        if args.case is None:
            evidence.facts.question = asked
        else:  # what is not said anew is as the case was made
            given = {key: value for key, value in asked.items() if value}
            if args.call is not None:  # of a case of a system call, too
                given["syscall"] = False
            evidence.facts.question = {**evidence.facts.question, **given}
        return give(evidence, args)


def give(evidence: Any, args: argparse.Namespace) -> int:
    """Run what the evidence was asked, save the case if wanted, print; the exit status."""
    from kwhy.cli.connect import read_again
    from kwhy.diagnose.call import explain
    from kwhy.kernel.model import open_kernel
    from kwhy.report import call

    question = _question(evidence.facts.question)
    kernel = open_kernel(evidence, *places(args))
    verdict = explain(kernel, question, lambda: read_again(evidence))
    draw = functools.partial(call.render, verdict)
    answer.finish(args, evidence, draw, verdict.to_json(), verdict.summary)
    return answer.status(verdict.confidence)


def _question(asked: dict[str, Any]) -> Any:
    from kwhy.diagnose.call import Question

    text, cpu, task = asked.get("call"), asked.get("cpu") or 0, asked.get("task")
    if not isinstance(text, str):
        raise InputError("the case was not made by kwhy call: say what to call")
    if not isinstance(cpu, int) or not (task is None or isinstance(task, int)):
        raise InputError("the case's question is damaged: --cpu and --task are no numbers")
    flags = {name: bool(asked.get(name)) for name in ("syscall", "why", "trace")}
    return Question(text, cpu=cpu, task=task, **flags)
