"""What the result of a callee hangs on: the same result each round says not yet that it stays."""

from collections.abc import Callable
from dataclasses import dataclass, field

from kwhy.diagnose import spin_words
from kwhy.diagnose.spin_loop import classify
from kwhy.diagnose.spin_watch import Watcher
from kwhy.kernel.model import Kernel
from kwhy.record.samples import Sample
from kwhy.verdict.spin import Operand

WINDOW = 0.2  # s of watching the call
MOMENTS, ATTEMPTS, AT_LEAST = 3, 8, 2
PERIOD, PAUSE = 10_000_000, 0.25  # ns between samples that only pass the time, and the s of that
MAX_SHOWN = 4


@dataclass(slots=True)
class Behind:
    """``operands`` decided; ``missing``: why that is not known of enough moments."""

    operands: list[Operand] = field(default_factory=list)
    missing: str | None = None


def look_behind(
    kernel: Kernel, watcher: Watcher, call: int, site: int, right: Callable[[int], bool]
) -> Behind:
    """Make the call at an instruction offline, at several moments, and compare what decided."""
    out = Behind()
    seen = watcher.breakpoints([call], WINDOW)[call]
    if not seen.samples:
        out.missing = seen.error or "the call was not seen"
        return out
    found = []
    for number in range(ATTEMPTS):
        start = seen.samples[number * len(seen.samples) // ATTEMPTS]
        found += watcher.decided([start], site, right)
        if len(found) == MOMENTS:
            break
        watcher.clock(PERIOD, PAUSE)
    if len(found) < AT_LEAST:
        out.missing = "executed offline it does not answer as it was seen to"
        return out
    if any(kept["clock"] for _, kept in found):
        out.operands.append(Operand(expr="the time", value="passes", how="varying", source="clock"))
    _inputs(seen.samples, {name for _, kept in found for name in kept["inputs"]}, out)
    values: dict[int, list[tuple[int, int]]] = {}
    for _, kept in found:
        for address, (size, value) in kept["reads"].items():
            values.setdefault(int(address), []).append((size, value))
    _reads(kernel, values, out)
    return out


def _inputs(samples: list[Sample], names: set[str], out: Behind) -> None:
    """Arguments that differ from round to round without coming around again."""
    for name in sorted(names):
        found = classify([s.registers[name] for s in samples if name in s.registers])
        if found is not None and found.how in ("counter", "varying"):
            out.operands.append(
                Operand(expr=f"{name} at the call", value="changes", how=found.how,
                        source="breakpoint")
            )  # fmt: skip


def _reads(kernel: Kernel, values: dict[int, list[tuple[int, int]]], out: Behind) -> None:
    """Memory: what changed first, for that is what matters."""
    constant = []
    for address, found in sorted(values.items()):
        distinct = list(dict.fromkeys(value for _, value in found))
        name = spin_words.place(kernel, address)
        if len(distinct) > 1:
            text = " → ".join(spin_words.number(value) for value in distinct)
            out.operands.append(
                Operand(expr=name, value=text, how="varying", source="executed offline")
            )
        else:
            constant.append((name, distinct[0]))
    named = [(name, value) for name, value in constant if not name.startswith("*")]
    for name, value in (named or constant)[:MAX_SHOWN]:
        out.operands.append(
            Operand(
                expr=name,
                value=spin_words.number(value),
                how="constant",
                source="executed offline",
            )
        )
