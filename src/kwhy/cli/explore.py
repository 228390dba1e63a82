"""``kwhy explore``: the shortest sequence of kernel operations into a bad state."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwhy.cli import answer
from kwhy.cli.target import add_target_arguments, places
from kwhy.errors import UsageError

_OFTEN = 0.2  # seconds between two looks at the progress
_FIRST = 3  # steps that are tried before there are several processes

if TYPE_CHECKING:
    from collections.abc import Callable

    from kwhy.emulate.checkpoint import Checkpoint, Progress
    from kwhy.emulate.model import Model
    from kwhy.emulate.search import Outcome
    from kwhy.emulate.world import World
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
        "--resume", metavar="FILE", type=Path,
        help="keep in FILE how far the search is, and go on from there if it exists",
    )  # fmt: skip
    parser.add_argument(
        "--random", metavar="STEPS", type=int, help="walk at random instead of searching"
    )


def run(args: argparse.Namespace) -> int:
    """Search and report: 0 when a sequence was found, 1 when none was."""
    from kwhy.cli.connect import open_evidence, require_memory
    from kwhy.emulate import model, search
    from kwhy.emulate.world import Stopped, World
    from kwhy.errors import InputError
    from kwhy.kernel.model import open_kernel

    if args.resume is not None and args.random is not None:
        raise UsageError("--resume is for a search, not for --random walks")
    for value, name in ((args.depth, "--depth"), (args.jobs, "--jobs"), (args.random, "--random")):
        if value is not None and value < 1:
            raise UsageError(f"{name} takes a number of 1 or more")
    wanted = model.load(args.model)
    with open_evidence(args, probe=False) as evidence:
        require_memory(evidence)
        kernel = open_kernel(evidence, *places(args))
        world = World(kernel, args.cpu)
        depth = args.depth or wanted.depth
        try:
            wanted.prepare(world)
            # Most of what the operations touch is fetched here, by one process.
            search.search(wanted, world, depth=_FIRST)
            if args.random:
                found = search.wander(wanted, world, steps=args.random, depth=depth)
            else:
                start, keep = _kept(args, wanted, kernel.build_id, world)
                jobs = args.jobs or os.cpu_count() or 1
                found = search.search(
                    wanted, world, depth=depth, jobs=jobs, tell=_teller(args), start=start,
                    keep=keep,
                )  # fmt: skip
            states = [] if found.path is None else search.replay(wanted, world, found.path)
            _wipe(args)
        except Stopped as error:
            raise InputError(f"{args.model}: cannot be asked here: {error}") from None
        if args.save is not None:
            evidence.save(args.save)
    _tell(wanted, found, states, kernel.release, args)
    return 0 if found.path is not None else 1


def _kept(
    args: argparse.Namespace, model: "Model", build_id: str, world: "World"
) -> tuple["Checkpoint | None", "Callable[[Checkpoint], None]"]:
    """Where an earlier search with the same file was, and how to keep where this one is."""
    from kwhy.emulate import checkpoint

    if args.resume is None:
        return None, lambda point: None
    identity = {"model": model.text, "kernel": build_id, "memory": world.fingerprint()}
    start = None
    if args.resume.exists():
        start = checkpoint.load(args.resume, model.operations, identity)

    def keep(point: "Checkpoint") -> None:
        checkpoint.save(args.resume, point, model.operations, identity)

    return start, keep


def _teller(args: argparse.Namespace) -> Any:
    shown = args.verbose or sys.stderr.isatty()
    last = 0.0

    def tell(progress: "Progress") -> None:
        nonlocal last
        if shown and (progress.seconds - last > _OFTEN or not progress.left):
            last = progress.seconds
            print(
                f"\rkwhy: depth {len(progress.levels)}, {progress.states:,} states, "
                f"{progress.rate:,.0f} steps/s, {progress.left:,} states to go on from \033[K",
                end="",
                file=sys.stderr,
                flush=True,
            )

    return tell


def _wipe(args: argparse.Namespace) -> None:
    if args.verbose or sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


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
