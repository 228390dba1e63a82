"""The crash debugger on the same dump: all stacks by its ``foreach bt``."""

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 1800  # seconds


@dataclass(frozen=True, slots=True)
class Walk:
    """``seconds`` from the command line to its end, and how many tasks it showed a stack of."""

    seconds: float
    tasks: int


def walk(vmlinux: Path, core: Path) -> Walk | str:
    """All stacks of a dump; or why there are none, in a few words."""
    if shutil.which("crash") is None:
        return "not installed"
    begin = time.monotonic()
    try:
        done = subprocess.run(
            ["crash", "-s", str(vmlinux), str(core)], input="foreach bt\nquit\n",
            capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer in {PATIENCE} s"
    seconds = time.monotonic() - begin
    tasks = sum(line.startswith("PID:") for line in done.stdout.splitlines())
    if tasks:
        return Walk(seconds, tasks)
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    why = next((line for line in said if line.startswith("crash:")), "")
    return f"cannot read it: {why.removeprefix('crash:').strip() or f'status {done.returncode}'}"
