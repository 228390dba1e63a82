"""``kwhy hang`` on a dump with thousands of tasks: ``python -m bench.hang [--tasks 10000]``.

Measured beside others in the same run: the time from the command line to the report; drgn's bare
walk over all stacks of the same dump, and crash's ``foreach bt`` if that is installed; the share of
parameters of all frames that have a value, also beside gdb if that is installed. Where two have
one, they are compared.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import crash, gdb
from kwhy import lab
from kwhy.lab.hangs import FILE, REPORT, start

MEMORY_OF_A_TASK = 0.12  # MiB: stacks, tables, bookkeeping


def main() -> None:
    """Boot, crowd, dump, measure, show."""
    parser = argparse.ArgumentParser(prog="python -m bench.hang", description=__doc__)
    parser.add_argument("--series", default="6.12", help="the lab kernel to measure on")
    parser.add_argument("--tasks", type=int, default=10_000, help="how many wait for one mutex")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kwhy-bench-") as directory:
        core = Path(directory) / "vmcore"
        crowd(args.series, args.tasks, core)
        show(measure(core))


def crowd(series: str, tasks: int, core: Path) -> None:
    """A dump of a guest in which the report's tasks hang and ``tasks`` wait for one mutex."""
    settings = lab.Settings(keep=False, memory=1024 + int(tasks * MEMORY_OF_A_TASK))
    waiting = ["busy:mutex=3,sleep=0", f"queue:after=ruby2,after=busy,crowd={tasks},mutex=3"]
    with lab.start(series, settings=settings) as guest:
        with lab.open_link(guest) as link:
            start(link, guest.release, [*REPORT.tasks, *waiting], [FILE])
        time.sleep(10 + tasks / 1000)  # the last of them are on their way into the queue
        guest.dump(core)


def measure(core: Path) -> dict[str, Any]:
    """The figures for one dump."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "kwhy", "hang", "--core", str(core)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - begin
    program, kernel, seen = opened(core)
    begin = time.monotonic()
    tasks = frames = 0
    for task in seen.stacks:
        tasks += 1
        frames += len(program.stack_trace(task_object(program, task)))
    walk = time.monotonic() - begin
    peer = crash.walk(Path(kernel.vmlinux), core)
    return {
        "crash": peer if isinstance(peer, str) else f"{peer.seconds:.1f} s, {peer.tasks:,} tasks",
        "headline": " ".join(done.stdout.split("\n\n")[0].split()),
        "seconds": seconds,
        "drgn_walk_seconds": walk,
        "tasks": tasks,
        "frames": frames,
        **parameters(program, kernel, seen),
    }


def opened(core: Path) -> tuple[Any, Any, Any]:
    """A dump as drgn's program, as kwhy's kernel, and one look at its tasks."""
    from kwhy.case.vmcore import VmcoreEvidence
    from kwhy.diagnose.hang.memory import Memory
    from kwhy.diagnose.hang.survey import survey
    from kwhy.kernel.model import open_kernel
    from kwhy.kernel.program import open_program

    kernel = open_kernel(VmcoreEvidence(core))
    return open_program(kernel), kernel, survey(Memory(kernel))


def task_object(program: Any, address: int) -> Any:
    """A task for drgn."""
    import drgn

    return drgn.Object(program, "struct task_struct *", address)


def parameters(program: Any, kernel: Any, seen: Any) -> dict[str, int]:
    """How many parameters have a value, by kwhy, drgn and gdb; how often they differ."""
    from kwhy.diagnose.hang.arguments import Arguments

    arguments = Arguments(kernel)
    count: Counter[str] = Counter()
    chosen = [(task, stack) for task, stack in seen.stacks.items() if stack.frames][:300]
    by_gdb = gdb.parameters(kernel, [s for _t, s in chosen]) if shutil.which("gdb") else None
    for thread, (task, stack) in enumerate(chosen, 1):
        trace = program.stack_trace(task_object(program, task))
        by_pc = {frame.pc: frame for frame in trace if not frame.is_inline}
        for number, frame in enumerate(stack.frames):
            for argument in arguments.frame(stack, number):
                theirs = drgn_value(by_pc.get(frame.pc), argument.name)
                ours = None if not argument.value else argument.value.replace("NULL", "0")
                count["parameters"] += 1
                count["kwhy"] += ours is not None
                count["at the call"] += ours is not None and not argument.now
                count["drgn"] += theirs is not None
                if ours is not None and theirs is not None and not argument.now:
                    count["drgn same" if same_number(ours, theirs) else "drgn different"] += 1
                if by_gdb is None:
                    continue
                told = by_gdb.get((thread, frame.pc), {}).get(argument.name)
                count["gdb"] += told is not None
                digits = re.match(r"-?0x[0-9a-f]+|-?\d+", told or "")
                if ours is not None and digits and not argument.now:
                    same = same_number(ours, int(digits[0], 0))
                    count["gdb same" if same else "gdb different"] += 1
    return dict(count)


def same_number(ours: str, theirs: int) -> bool:
    """Whether a value that kwhy shows is that number, of whatever size."""
    return (int(ours, 0) ^ theirs) & 0xFFFFFFFF == 0


def drgn_value(frame: Any, name: str) -> int | None:
    """A parameter by drgn alone; None if it does not know it."""
    try:
        value = frame[name]
        return None if value.absent_ else int(value.value_())
    except (KeyError, TypeError, ValueError):
        return None


def parameter_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of a table with columns for kwhy, drgn and gdb."""
    total = found["parameters"]
    return [
        (
            f"{total:,} parameters with a value",
            f"{found['kwhy'] / total:.0%}", f"{found['drgn'] / total:.0%}",
            f"{found['gdb'] / total:.0%}" if found.get("gdb") else "no answer",
        ),
        ("  as they were at the call", f"{found['at the call'] / total:.0%}"),
        (
            "values that kwhy has, too: the same, different", "",
            *(f"{found.get(f'{who} same', 0):,}, {found.get(f'{who} different', 0):,}"
              for who in ("drgn", "gdb")),
        ),
    ]  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """One table: ours, drgn's, gdb's."""
    table = Table(title=found["headline"])
    for column in ("measure", "kwhy", "drgn", "gdb"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    table.add_row(
        f"{found['tasks']:,} tasks: dump to report | all stacks, bare",
        f"{found['seconds']:.1f} s", f"{found['drgn_walk_seconds']:.1f} s",
    )  # fmt: skip
    table.add_row("  the same by crash, `foreach bt`", "", found["crash"])
    for row in parameter_rows(found):
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
