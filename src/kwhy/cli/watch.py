"""``kwhy watch``: what of a data structure does each step of a command change?"""

import argparse
import functools
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kwhy.cli import answer
from kwhy.cli.target import add_target_arguments, check_put_files, places
from kwhy.errors import FeatureError, UsageError

if TYPE_CHECKING:
    from kwhy.case.live import LiveEvidence
    from kwhy.emulate.picture import Picture, Sight
    from kwhy.link import Link
    from kwhy.report.watch import Moment

HELP = (
    "Take a typed picture of a data structure before and after each step, and print what changed. "
    "Steps are separated by a word that is three dashes: -- CMD1 --- CMD2. Without a command each "
    "press of Enter is one."
)
KEY = ("Enter",)
"""The step that somebody makes who is watching."""
SEPARATOR = "---"
PATIENCE = 600.0
"""Seconds that a command may run under --at without --timeout."""
FUNCTION = re.compile(r"(\w+:)?[A-Za-z_][\w.]*(\+(0x)?[0-9a-f]+)?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add_target_arguments(parser)
    parser.add_argument("expression", metavar="EXPR", help="C-like: variables, fields, casts, *x")
    parser.add_argument(
        "--depth", metavar="N", type=int, default=2, help="follow pointers N times (2)"
    )
    parser.add_argument(
        "--at", metavar="FUNC", help="also at each entry of this kernel function by the command"
    )
    parser.add_argument("--pin", metavar="CPU", type=int, help="run the commands on this CPU")
    parser.add_argument("--repeat", metavar="N", type=int, default=1, help="do it all N times")
    parser.add_argument("command", metavar="-- CMD ...", nargs="*", help="what to run")


def run(args: argparse.Namespace) -> int:
    """Pictures and differences; 0 when something changed, 1 when nothing did."""
    from kwhy.case.live import LiveEvidence
    from kwhy.cli.connect import connect, require_memory

    if args.core is not None or args.case is not None:
        raise UsageError("what stands still cannot be watched: kwhy watch needs a live target")
    if args.depth < 0 or args.repeat < 1:
        raise UsageError("--depth takes 0 or more, --repeat 1 or more")
    steps = _steps(args.command)
    if args.at is not None and (not steps or not FUNCTION.fullmatch(args.at)):
        raise UsageError("--at takes a kernel function (MODULE:NAME, NAME+OFFSET) and a command")
    check_put_files(args.put)
    with connect(args, probe=False) as link:
        for put in args.put:
            link.put(put.local, put.remote)
        evidence = LiveEvidence(link)
        require_memory(evidence)
        evidence.facts.question = {"verb": "watch", "expression": args.expression}
        take = _moments if args.at is None else _moments_at
        moments = list(take(link, evidence, args, steps * args.repeat))
        return _give(args.expression, moments, evidence, args)


def explain_saved(case: Any, args: argparse.Namespace) -> int:
    """The report of a saved case again, from its pictures."""
    from kwhy.emulate.picture import differences
    from kwhy.report.watch import Moment

    moments: list[Moment] = []
    before: Picture = {}
    for kept in case.facts.extra.get("pictures") or ():
        hit = kept.get("hit")
        after = {**before, **kept["picture"]} if hit else kept["picture"]
        if kept["step"] is not None:
            words, notes = tuple(kept["step"]), tuple(kept.get("notes") or ())
            changes = differences(before, after)
            moments.append(
                Moment(words, kept["status"], kept["output"], changes, len(after), hit, notes)
            )
        before = after
    return _give(str(case.facts.question.get("expression")), moments, case, args)


def _give(
    expression: str, moments: "list[Moment]", evidence: Any, args: argparse.Namespace
) -> int:
    from kwhy.report import watch

    draw = functools.partial(watch.render, expression, moments)
    data = watch.as_json(expression, moments)
    answer.finish(args, evidence, draw, data, f"what changed of {expression}")
    return 0 if any(moment.changes for moment in moments) else 1


def _steps(words: list[str]) -> list[list[str]]:
    """The commands; none at all means keys."""
    if not words:
        return []
    steps: list[list[str]] = [[]]
    for word in words:
        if word == SEPARATOR:
            steps.append([])
        else:
            steps[-1].append(word)
    if not all(steps):
        raise UsageError("give a command after --, and one on each side of every ---")
    return steps


def _moments(
    link: "Link", evidence: "LiveEvidence", args: argparse.Namespace, steps: list[list[str]]
) -> "Iterator[Moment]":
    """Run the steps, or wait for them; each with the picture after it and what it changed."""
    from kwhy.emulate.picture import differences
    from kwhy.report.watch import Moment, step

    before = _picture(evidence, args)
    kept: list[Any] = [{"step": None, "picture": before}]
    evidence.facts.extra["pictures"] = kept
    for words, status, output in _ran(link, args, steps) if steps else _pressed():
        after = _picture(evidence, args)
        kept.append({"step": list(words), "status": status, "output": output, "picture": after})
        moment = Moment(tuple(words), status, output, differences(before, after), len(after))
        if not steps:  # who presses keys wants to see at once what they gave
            print(step(len(kept) - 1, moment).text().plain, file=sys.stderr, flush=True)
        yield moment
        before = after


def _moments_at(
    link: "Link", evidence: "LiveEvidence", args: argparse.Namespace, steps: list[list[str]]
) -> "Iterator[Moment]":
    """The steps, each with the hits of ``--at`` before its end."""
    from kwhy.case.capture import record_probe
    from kwhy.emulate import hits
    from kwhy.emulate.picture import differences
    from kwhy.report.watch import Moment

    kept: list[Any] = []
    evidence.facts.extra["pictures"] = kept
    for words in steps:
        kernel, sight = _look(evidence, args)
        planned = hits.plan(sight)
        if not planned.runs:
            raise UsageError(f"{args.expression} has no value in memory to read at {args.at}")
        ran = record_probe(
            link, planned.definition(args.at), _pinned(args, words), args.timeout or PATIENCE
        )
        count = len(planned.addresses())
        found = hits.read_hits(ran.pages, link.blob("header_page"), ran.format_text, count)
        before = sight.values
        if not kept:
            kept.append({"step": None, "picture": before})
        chosen = found[: hits.MAX_HITS]
        for hit, seen in zip(
            chosen, hits.at_hits(kernel.evidence.pages, planned, chosen), strict=True
        ):
            where = {"function": args.at, "time": hit.time, "cpu": hit.cpu, "tid": hit.tid}
            entry = {"step": list(words), "status": 0, "output": "", "picture": seen, "hit": where}
            kept.append(entry)
            after = {**before, **seen}
            yield Moment(tuple(words), 0, "", differences(before, after), len(after), where)
            before = after
        after = _picture(evidence, args)
        notes = hits.remarks(args.at, planned, found, ran.lost)
        kept.append(
            {"step": list(words), "status": ran.status, "output": ran.output,
             "picture": after, "notes": notes}
        )  # fmt: skip
        changes = differences(before, after)
        yield Moment(
            tuple(words), ran.status, ran.output, changes, len(after), None, tuple(notes)
        )


def _ran(
    link: "Link", args: argparse.Namespace, steps: list[list[str]]
) -> Iterator[tuple[Sequence[str], int, str]]:
    """Each step's command with its status and output, when it has run."""
    for words in steps:
        yield (words, *_run(link, _pinned(args, words), args.timeout))


def _pinned(args: argparse.Namespace, words: list[str]) -> list[str]:
    return words if args.pin is None else ["taskset", "-c", str(args.pin), *words]


def _pressed() -> Iterator[tuple[Sequence[str], int, str]]:
    """A step whenever a line comes; the end of the input, or a q, ends."""
    print("kwhy: Enter takes a picture, q ends", file=sys.stderr, flush=True)
    for line in sys.stdin:
        if line.strip() == "q":
            return
        yield KEY, 0, ""


def _picture(evidence: "LiveEvidence", args: argparse.Namespace) -> "Picture":
    return _look(evidence, args)[1].values


def _look(evidence: "LiveEvidence", args: argparse.Namespace) -> "tuple[Any, Sight]":
    """On a fresh reading of the memory; what is the same at all times is kept."""
    from kwhy.cli.connect import read_again
    from kwhy.emulate.picture import look
    from kwhy.kernel.model import open_kernel

    kernel = open_kernel(read_again(evidence), *places(args))
    return kernel, look(kernel, args.expression, args.depth, args.pin or 0)


def _run(link: "Link", words: list[str], timeout: float | None) -> tuple[int, str]:
    """A command's status and output. Raises UsageError when it cannot be started."""
    output = b""
    status: dict[str, Any] = {}
    try:
        with link.stream("spawn", timeout=timeout or 600.0, argv=words) as stream:
            for message in stream:
                if message.kind in ("out", "err"):
                    output = (output + message.data)[-4096:]
                elif message.kind == "end":
                    status = message.header["status"]
    except FeatureError as error:
        raise UsageError(str(error)) from None
    code = status.get("code")
    return (-int(status.get("signal") or 0) if code is None else int(code)), output.decode(
        "utf-8", "replace"
    )
