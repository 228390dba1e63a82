"""``kwhy demo spin``: a bug that lived in the ring buffer for 13 years, found by machine."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kwhy.errors import KwhyError

MODEL = "ring_buffer.py"
Title = Callable[[str, str], None]


def run(args: argparse.Namespace, title: Title) -> int:
    """Search on the fixed kernel, on the broken one, set the bug off, and explain the loop."""
    from kwhy import lab
    from kwhy.lab.spins import SETTINGS, ring

    title(
        "A reader of the trace burns a processor and cannot be killed",
        "The field report took register samples, hardware breakpoints, memory captured from the\n"
        "kernel and its code run offline. Here the old bug is put back into a modern kernel.",
    )
    model = Path(__file__).parents[3] / "models" / MODEL
    if not model.is_file():
        raise KwhyError(f"the demonstration needs models/{MODEL} of a clone of kwhy")
    name = "demo-spin"
    settings = replace(SETTINGS, keep=False)
    with lab.start(args.lab, name, settings) as guest:
        title("The kernel as it is: can the buffer claim to hold something and give nothing?", "")
        _verb("explore", ["--lab", name, str(model)], args)
        with lab.open_link(guest, probe=False) as link:
            ring.load(link, guest.release)
        title("The same question with the old bug in it", "")
        path = _verb("explore", ["--lab", name, str(model)], args)
        if path != 0:
            return path
        steps = _steps(name, model)
        title("That sequence, from user space, in this guest", " ".join(steps))
        with lab.open_link(guest, probe=False) as link:
            tid = ring.detonate(link, steps)
        return _verb("spin", ["--lab", name, "--deep", str(tid)], args)


def _verb(verb: str, words: Sequence[str], args: argparse.Namespace) -> int:
    from kwhy.cli.main import main

    print(f"$ kwhy {verb} {' '.join(words)}\n", flush=True)
    return main([verb, "--color", args.color, *words])


def _steps(name: str, model: Path) -> list[str]:
    """The sequence that the search finds, for the program that does it live."""
    from kwhy import lab
    from kwhy.case.live import LiveEvidence
    from kwhy.emulate import search
    from kwhy.emulate.model import load
    from kwhy.emulate.world import World
    from kwhy.kernel.model import open_kernel

    with lab.connect(name, probe=False) as connection:
        world = World(open_kernel(LiveEvidence(connection.link)))
        wanted = load(model)
        wanted.prepare(world)
        return list(search.search(wanted, world, depth=wanted.depth).path or ())
