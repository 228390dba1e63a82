"""``kwhy demo spin``: a bug that lived in the ring buffer for 13 years, found by machine."""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kwhy.errors import KwhyError

if TYPE_CHECKING:
    from kwhy.lab.guest import Guest

CLONE = Path(__file__).parents[3]
MODEL = "ring_buffer.py"
NAME = "demo-spin"
BUFFER = "*global_trace.array_buffer.buffer->buffers[1]"
Title = Callable[[str, str], None]


def run(args: argparse.Namespace, title: Title) -> int:
    """The report's way: the loop, the contradiction, how the pages change, how it comes to that.

    0 when the sequence that the search found leads a fresh guest into the same loop.
    """
    from kwhy.lab.spins import ring

    model = CLONE / "models" / MODEL
    if not model.is_file():
        raise KwhyError(f"the demonstration needs models/{MODEL} of a clone of kwhy")
    title(
        "1. A reader of the trace burns a processor and cannot be killed",
        "The field report took register samples, hardware breakpoints, memory captured from the\n"
        "kernel and its code run offline. Here the old bug is back in a modern kernel, and has\n"
        "struck.",
    )
    with _guest(args.lab, bug=True) as guest:
        worst = _explode(guest, ring.INCIDENT, args)
    with _guest(args.lab, bug=False) as guest:
        title(
            "2. How can it come to that? First the kernel as it is, without the bug",
            "Can the buffer ever claim to hold something, and give nothing?",
        )
        if _verb("explore", ["--lab", NAME, str(model)], args) != 1:
            raise KwhyError("the fixed kernel is expected to have no such state")
        _load(guest)
        title("3. The same question with the old bug in it", "")
        worst = max(worst, _verb("explore", ["--lab", NAME, str(model)], args))
        steps = _steps(model)
        title(
            "4. What these steps do to the pages",
            "From user space: write is a write to trace_marker, consume a read of trace_pipe,\n"
            "discard an event whose filter is false. The last discard leaves a page with nothing\n"
            "committed and the read index of its last use.",
        )
        worst = max(worst, _watch(guest, steps, args))
    title(
        "5. The proof: that sequence in a fresh guest",
        f"{' '.join(steps)}, and then a reader reads on",
    )
    with _guest(args.lab, bug=True) as guest:
        return max(worst, _explode(guest, steps, args))


@contextmanager
def _guest(version: str, bug: bool) -> "Iterator[Guest]":
    """A fresh guest with the kernel as it is, or with the bug."""
    from kwhy import lab
    from kwhy.lab.spins import SETTINGS

    print("booting a fresh guest ...", flush=True)
    with lab.start(version, NAME, replace(SETTINGS, keep=False)) as guest:
        if bug:
            _load(guest)
        yield guest


def _load(guest: "Guest") -> None:
    """Bring the bug back."""
    from kwhy import lab
    from kwhy.lab.spins import ring

    with lab.open_link(guest, probe=False) as link:
        ring.load(link, guest.release)


def _explode(guest: "Guest", steps: Sequence[str], args: argparse.Namespace) -> int:
    """Do the steps from user space, read on, and ask why the reader spins."""
    from kwhy import lab
    from kwhy.lab.spins import ring

    with lab.open_link(guest, probe=False) as link:
        tid = ring.detonate(link, steps)
    return _verb("spin", ["--lab", NAME, "--deep", str(tid)], args)


def _watch(guest: "Guest", steps: Sequence[str], args: argparse.Namespace) -> int:
    """The pages before and after each step."""
    from kwhy import lab
    from kwhy.lab.spins import ring

    with lab.open_link(guest, probe=False) as link:
        ring.arm(link)
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "step.py"
        program.write_text(ring.STEP)
        words = " --- ".join(f"python3 step.py {step}" for step in steps).split()
        put = ["--put", f"{program}:step.py"]
        return _verb("watch", [BUFFER, "--lab", NAME, "--pin", "1", *put, "--", *words], args)


def _verb(verb: str, words: Sequence[str], args: argparse.Namespace) -> int:
    from kwhy.cli.main import main

    own = f"{CLONE}/"  # where that lies tells the reader nothing
    shown = [w.removeprefix(own) if w.startswith(own) else w.rpartition("/")[2] for w in words]
    print(f"$ kwhy {verb} {' '.join(shown)}\n", flush=True)
    return main([verb, "--color", args.color, *words])


def _steps(model: Path) -> list[str]:
    """The sequence that the search finds, for the program that does it live."""
    from kwhy import lab
    from kwhy.case.live import LiveEvidence
    from kwhy.emulate import search
    from kwhy.emulate.model import load
    from kwhy.emulate.world import World
    from kwhy.kernel.model import open_kernel

    with lab.connect(NAME, probe=False) as connection:
        world = World(open_kernel(LiveEvidence(connection.link)))
        wanted = load(model)
        wanted.prepare(world)
        return list(search.search(wanted, world, depth=wanted.depth).path or ())
