"""``kwhy explore``: the shortest sequence of kernel operations into a bad state."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwhy.cli import answer
from kwhy.cli.target import add_target_arguments, places
from kwhy.errors import UsageError

if TYPE_CHECKING:
    from kwhy.emulate.model import Model
    from kwhy.emulate.search import Outcome, Progress
    from kwhy.report.page import Page

HELP = (
    "Search for the shortest sequence of real kernel operations, run offline on a copy of the "
    "target's memory, that leads into a state that a model calls bad."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add_target_arguments(parser)
    parser.add_argument("model", metavar="MODEL.py", type=Path, help="what to do and to look for")
    parser.add_argument("--depth", metavar="N", type=int, help="at most N steps")
    parser.add_argument("--cpu", metavar="N", type=int, default=0, help="as if on this CPU (0)")
    parser.add_argument("--jobs", metavar="N", type=int, help="processes (all processors)")
    parser.add_argument(
        "--random", metavar="STEPS", type=int, help="walk at random instead of searching"
    )


def run(args: argparse.Namespace) -> int:
    """Search and report: 0 when a sequence was found, 1 when none was."""
    from kwhy.cli.connect import open_evidence
    from kwhy.emulate import model, search
    from kwhy.emulate.world import Stopped, World
    from kwhy.errors import InputError
    from kwhy.kernel.model import open_kernel

    for value, name in ((args.depth, "--depth"), (args.jobs, "--jobs"), (args.random, "--random")):
        if value is not None and value < 1:
            raise UsageError(f"{name} takes a number of 1 or more")
    wanted = model.load(args.model)
    with open_evidence(args) as evidence:
        kernel = open_kernel(evidence, *places(args))
        world = World(kernel, args.cpu)
        depth = args.depth or wanted.depth
        try:
            wanted.prepare(world)
            # What the operations touch is fetched here, once, before there are several processes.
            search.search(wanted, world, depth=min(depth, 3), jobs=1)
            if args.random:
                found = search.wander(wanted, world, steps=args.random, depth=depth)
            else:
                jobs = args.jobs or os.cpu_count() or 1
                found = search.search(wanted, world, depth=depth, jobs=jobs, tell=_teller(args))
            states = [] if found.path is None else search.replay(wanted, world, found.path)
        except Stopped as error:
            raise InputError(f"{args.model}: cannot be asked here: {error}") from None
        if args.save is not None:
            evidence.save(args.save)
    _tell(wanted, found, states, kernel.release, args)
    return 0 if found.path is not None else 1


def _teller(args: argparse.Namespace) -> Any:
    shown = args.verbose or sys.stderr.isatty()

    def tell(progress: "Progress") -> None:
        if shown:
            print(
                f"\rkwhy: {progress.states:,} states, {progress.rate:,.0f} steps/s, "
                f"depth {len(progress.levels)}",
                end="",
                file=sys.stderr,
                flush=True,
            )

    return tell


def _tell(
    model: "Model",
    found: "Outcome",
    states: list[list[str]],
    release: str,
    args: argparse.Namespace,
) -> None:
    from kwhy.report import explore

    def draw(width: int) -> "Page":
        return explore.render(model.recipe, found, states, release, width)

    data = explore.as_json(model.path.stem, model.recipe, found, states, release)
    answer.finish(args, None, draw, data, f"the search in {model.path.stem}")
