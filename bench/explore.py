"""The search for a bad state: steps per second, growth with depth, and the time to the bug.

The model is models/ring_buffer.py; for the rate with exact sizes and one more operation, so that
states are many.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.guest import Bench
from kwhy import lab
from kwhy.case.vmcore import VmcoreEvidence
from kwhy.emulate import model, search
from kwhy.emulate.world import World
from kwhy.kernel.model import open_kernel
from kwhy.lab.spins import ring

MODEL = Path(__file__).parent.parent / "models" / "ring_buffer.py"
EXACT = Path(__file__).with_name("ring_sizes.py")
DEPTH = 15


def explore(bench: Bench) -> dict[str, Any]:
    """Measure on two dumps: as the kernel is, and with the old bug brought back."""
    guest = lab.find(bench.name)
    assert guest is not None
    with tempfile.TemporaryDirectory() as scratch:
        clean, buggy = Path(scratch) / "clean.core", Path(scratch) / "buggy.core"
        guest.dump(clean)
        ring.load(bench.link, guest.release)
        guest.dump(buggy)
        return measure(clean, buggy)


def measure(clean: Path, buggy: Path) -> dict[str, Any]:
    """The same on these dumps."""
    seconds, found = _command(buggy)
    exhausting, none = _command(clean)
    cores = os.cpu_count() or 1
    return {
        "cores": cores,
        "one": _rate(clean, 1),
        "all": _rate(clean, cores),
        "bug_seconds": seconds,
        "bug_steps": len(found["path"]),
        "shortest": found["shortest"],
        "exhausting_seconds": exhausting,
        "exhausted": none["exhausted"],
    }


def _command(core: Path) -> tuple[float, dict[str, Any]]:
    """The whole command's seconds and answer."""
    command = [sys.executable, "-m", "kwhy", "explore", "--core", str(core), "--json", str(MODEL)]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    answer: dict[str, Any] = json.loads(done.stdout)
    return time.perf_counter() - begin, answer


def _rate(core: Path, jobs: int) -> dict[str, Any]:
    """A search to DEPTH: transitions per second, and at the end of each level."""
    wanted = model.load(EXACT)
    world = World(open_kernel(VmcoreEvidence(core)))
    wanted.prepare(world)
    search.search(wanted, world, depth=3)
    ends: dict[int, dict[str, float]] = {}

    def tell(progress: search.Progress) -> None:
        ends[len(progress.levels)] = {
            "states": progress.states, "transitions": progress.transitions,
            "seconds": progress.seconds,
        }  # fmt: skip

    begin = _processor()
    found = search.search(wanted, world, depth=DEPTH, jobs=jobs, tell=tell)
    return {
        "processor_seconds": _processor() - begin,
        "per_second": found.progress.rate,
        "states": found.progress.states,
        "transitions": found.progress.transitions,
        "levels": found.progress.levels,
        "by_depth": ends,
    }


def _processor() -> float:
    """Seconds of processor time that this process and its ended children have taken."""
    times = os.times()
    return sum(times[:4])
