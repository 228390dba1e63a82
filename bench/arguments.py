"""Recovered arguments beside the truth: ``python -m bench.arguments [--series 6.12]``.

Two hundred tasks are put into every kind of wait that the lab knows, while probes record with what
each function on their stacks is entered. Then the guest is dumped, and every recovered argument of
a task that has not run in between is compared with the probe's.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.guest import Bench
from bench.hang import opened, parameter_rows, parameters, task_object
from kwhy import lab
from kwhy.diagnose.hang.arguments import Arguments
from kwhy.lab.hangs import SCENARIOS, start, stocks
from kwhy.lab.hangs.stocks import STOCKS

PROBES = Path(__file__).with_name("entries_guest.py")
MEMORY = 1400  # MiB


def main() -> None:
    """One guest to learn which functions are on the stacks, one with probes on them."""
    parser = argparse.ArgumentParser(prog="python -m bench.arguments", description=__doc__)
    parser.add_argument("--series", default="6.12", help="the lab kernel to measure on")
    parser.add_argument("--out", type=Path, default=Path("build/bench-arguments.json"))
    args = parser.parse_args()
    series = args.series
    with tempfile.TemporaryDirectory(prefix="kwhy-bench-") as directory:
        core, names = Path(directory) / "vmcore", Path(directory) / "names.json"
        with guest(series) as box:
            waits(box, series)
            box.dump(core)
        _program, _kernel, seen = opened(core)
        frames = [frame for stack in seen.stacks.values() for frame in stack.frames]
        names.write_text(json.dumps(sorted({f.symbol.name for f in frames if f.symbol})))
        core.unlink()
        with guest(series) as box:
            with lab.open_link(box) as link:
                link.put(PROBES, PROBES.name)
                link.put(names, names.name)
                Bench(box.name, link).run("python3", PROBES.name, "arm", names.name)
            waits(box, series)
            with lab.open_link(box) as link:
                truth = json.loads(Bench(box.name, link).run("python3", PROBES.name, "read"))
            box.dump(core)
        program, kernel, seen = opened(core)
        shares, found = parameters(program, kernel, seen), judge(program, kernel, seen, truth)
    show(series, shares, found)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"series": series, **shares, "probes": found}, indent=2) + "\n")


@contextmanager
def guest(series: str) -> Iterator[lab.Guest]:
    """A guest with room for the tasks; it ends with the block."""
    with lab.start(series, settings=lab.Settings(keep=False, memory=MEMORY)) as box:
        yield box


def waits(box: lab.Guest, series: str) -> None:
    """Put tasks into every kind of wait."""
    tasks = [task for scenario in SCENARIOS for task in scenario.tasks]
    with lab.open_link(box) as link:
        start(link, box.release, tasks, [file for s in SCENARIOS for file in s.files])
    chosen = [stock.name for stock in STOCKS if not (stock.module and series == "5.10")]
    with lab.open_link(box) as link:
        stocks.start(link, chosen)


def judge(program: Any, kernel: Any, seen: Any, truth: dict[str, Any]) -> dict[str, int]:
    """How many values are the probe's, as arguments and as what they have become by now."""
    arguments = Arguments(kernel)
    count: Counter[str] = Counter()
    for address, stack in seen.stacks.items():
        task = task_object(program, address)
        tid, switches = int(task.pid), int(task.nvcsw) + int(task.nivcsw)
        if truth["ran"].get(str(tid)) != switches:
            continue
        for number, frame in enumerate(stack.frames):
            symbol = frame.symbol
            key = f"{tid} {symbol.address if symbol else 0:x} {frame.cfa - 8:x}"
            passed = truth["entered"].get(key, ())
            for told, true in zip(arguments.frame(stack, number), passed, strict=False):
                if not told.value:
                    count["not known"] += 1
                    continue
                right = alike(told.value, int(true, 16))
                count[f"{'now ' if told.now else ''}{'the same' if right else 'different'}"] += 1
    return dict(count)


def alike(shown: str, passed: int) -> bool:
    """Whether a value as it is shown, perhaps a number of 4 bytes, is the register's."""
    value = int(shown.replace("NULL", "0"), 0)
    return not (value ^ passed) & ((1 << 64) - 1 if abs(value) >> 32 else 0xFFFFFFFF)


def show(series: str, shares: dict[str, int], found: dict[str, int]) -> None:
    """One table: shares beside the others', then the comparison with the probes."""
    table = Table(title=f"{series}: arguments on the stacks of tasks that wait")
    for column in ("measure", "kwhy", "drgn", "gdb"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for row in parameter_rows(shares):
        table.add_row(*row)
    for name in ("the same", "different", "not known", "now the same", "now different"):
        table.add_row(f"a probe at the entry: {name}", f"{found.get(name, 0):,}")
    Console().print(table)


if __name__ == "__main__":
    main()
