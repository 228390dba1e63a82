"""Whether a loop can end: what its ways out depend on, and how that behaves."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kwhy.diagnose import spin_words
from kwhy.diagnose.spin_behind import look_behind
from kwhy.diagnose.spin_left import left_in
from kwhy.diagnose.spin_loop import (
    Values,
    Watched,
    classify,
    decisive,
    recurs,
    result_values,
)
from kwhy.diagnose.spin_watch import Watcher
from kwhy.emulate.limits import holds_time
from kwhy.flow.cfg import Code
from kwhy.flow.loops import Load, evaluate
from kwhy.kernel.model import Kernel
from kwhy.record.samples import Sample
from kwhy.verdict.spin import Operand

MAX_LOADS = 16
STARTS = 3  # rounds that may be gone on from
WINDOW = 0.1  # s of watching the places that are read
PEEKS, PAUSE = 4, 0.1  # how often memory is looked at, and the s between
PERIOD = 10_000_000  # ns between samples that only pass the time


@dataclass(slots=True)
class Ending:
    """What the ways out depend on.

    ``constant``: on nothing that changes (or only comes around again). ``left_in``: words on what
    is left, when a counter nears a fixed bound. ``calls``: return addresses of the calls whose
    results decide.
    """

    operands: list[Operand] = field(default_factory=list)
    constant: bool = False
    left_in: str | None = None
    calls: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def ending(
    kernel: Kernel, code: Code, watcher: Watcher, watched: Watched, known: dict[str, Values]
) -> Ending:
    """What would end the loop, and whether anything of it moves."""
    arch = code.arch
    out = Ending()
    sure = bool(watched.rounds)
    moves = False
    turns = decisive(watched, arch)
    names = {name for _, s in turns for name in s.carried}
    for name in sorted(names):
        found = known.get(name)
        if found is None:
            sure = False
            continue
        out.operands.append(_register(name, found, watched.source(watched.loop.head)))
        moves = moves or found.how in ("counter", "varying")
    loads = sorted({each for _, s in turns for each in s.loads}, key=lambda each: each.at)
    sure = _memory(kernel, watcher, loads, out) and sure
    for result in sorted({r for _, s in turns for r in s.results}, key=lambda r: r.site):
        out.calls.add(result.site)
        sure = _result(kernel, code, watcher, watched, result.site, out) and sure
    if any(s.unknown for _, s in turns):
        out.notes.append("some instructions on the way to the loop's exits are not modelled")
        sure = False
    out.operands = list(dict.fromkeys(out.operands))
    moves = moves or any(operand.how in ("counter", "varying") for operand in out.operands)
    if sure and not moves:
        moves = _own_doing(kernel, watcher, watched, known, out)
    out.constant = sure and not moves
    for segment, source in turns:
        out.left_in = out.left_in or left_in(watched, watcher.starts, arch, segment, source, known)
    return out


def _own_doing(
    kernel: Kernel, watcher: Watcher, watched: Watched, known: dict[str, Values], out: Ending
) -> bool:
    """Whether the loop asks somewhere for what it changes itself: that may end it one day."""
    samples = watched.rounds
    found = watcher.own([samples[n * len(samples) // STARTS] for n in range(STARTS)])
    if found is None:
        return False
    moving = []
    for address, (_, numbers) in sorted(found["memory"].items(), key=lambda item: int(item[0])):
        values = classify(numbers)
        if not recurs(numbers) and values is not None and values.how in ("counter", "varying"):
            text = f"{spin_words.number(values.first)} … {spin_words.number(values.last)}"
            name = spin_words.place(kernel, int(address))
            moving.append(Operand(expr=name, value=text, how=values.how, source="executed offline"))
    for name in found["registers"]:
        moves = name in known and known[name].how in ("counter", "varying")
        if moves and not recurs([sample.registers[name] for sample in samples]):
            moving.append(_register(name, known[name], watched.source(watched.loop.head)))
    if found["clock"]:
        moving.append(Operand(expr="the time", value="passes", how="varying", source="clock"))
    out.operands.extend(moving)
    if moving:
        out.notes.append(
            "nothing that the ways out ask for changes; but other branches of a round ask for what "
            "does, and may change that"
        )
    return bool(moving)


def _register(name: str, found: Values, source: str) -> Operand:
    texts = {
        "constant": f"{found.first:#x}",
        "cycle": " → ".join(f"{value:#x}" for value in found.distinct[:4]) + " → …",
        "counter": f"{spin_words.number(found.first)} … {spin_words.number(found.last)}",
        "varying": "changes from round to round",
    }
    if found.how == "cycle":
        texts["cycle"] += f" ({len(found.distinct)} values, again and again)"
    return Operand(expr=name, value=texts[found.how], how=found.how, source=source)


def _memory(kernel: Kernel, watcher: Watcher, loads: Sequence[Load], out: Ending) -> bool:
    """Note what the loads give, looked at several times; False if that is not known of all."""
    if len(loads) > MAX_LOADS:
        return False
    passed = watcher.breakpoints(list(dict.fromkeys(load.at for load in loads)), WINDOW)
    places: dict[tuple[int, int], None] = {}
    sure = True
    for load in loads:
        seen = passed[load.at]
        if seen.error is None and not seen.count and not seen.lost:
            continue  # on a way that is not gone
        addresses = [_address(kernel, load, sample) for sample in seen.samples]
        found = classify([address for address in addresses if address is not None])
        if found is None or None in addresses:
            sure = False
        elif any(holds_time(kernel.symbols.at(address)) for address in found.distinct):
            out.operands.append(
                Operand(expr="the time", value="passes", how="varying", source=seen.source)
            )
        elif found.how in ("constant", "cycle"):
            places.update(((address, load.size), None) for address in found.distinct)
        else:
            out.operands.append(
                Operand(
                    expr=f"the place that {spin_words.offset(kernel, load.at)} reads",
                    value="moves",
                    how="varying",
                    source=seen.source,
                )
            )
    for _ in range(PEEKS):
        for address, size in places:
            watcher.memory(address, size)
        watcher.clock(PERIOD, PAUSE)
    for address, size in places:
        values = classify(watcher.memory(address, size))
        if values is None:
            sure = False
            continue
        fixed = values.how == "constant"
        out.operands.append(
            Operand(
                expr=spin_words.place(kernel, address),
                value=spin_words.number(values.first) if fixed else "changes",
                how="constant" if fixed else "varying",
                source="memory",
            )
        )
    return sure


def _address(kernel: Kernel, load: Load, sample: Sample) -> int | None:
    """Where a load read, by the registers that it was passed with."""
    registers = dict(sample.registers)
    offsets = kernel.symbols.address("__per_cpu_offset")
    if load.address[0] == "percpu" and offsets is not None:
        data = kernel.evidence.read(offsets + 8 * sample.cpu, 8)
        registers["percpu"] = int.from_bytes(data, "little")
    return evaluate(load.address, registers)


def _result(
    kernel: Kernel, code: Code, watcher: Watcher, watched: Watched, site: int, out: Ending
) -> bool:
    segment = next(
        s for s in watched.function.segments.values() if s.kind == "call" and s.last.end == site
    )
    name = spin_words.called(code, watched, segment)
    type = spin_words.result_type(kernel, code, segment)
    width = spin_words.result_width(kernel, watched, code.arch, type, site)
    values = result_values(watched, code.arch, site, width)
    found = classify(values)
    if found is None:
        return watched.never(site)
    text = spin_words.number(found.first) if found.how == "constant" else found.how
    if found.how == "cycle":
        text = ", ".join(spin_words.number(value) for value in found.distinct[:4])
    source = watched.source(site)
    out.operands.append(Operand(expr=f"{name}()", value=text, how=found.how, source=source))
    if found.how not in ("constant", "cycle"):
        return True
    mask = (1 << 8 * width) - 1
    inside = look_behind(
        kernel, watcher, segment.last.address, site, lambda result: result & mask in values
    )
    out.operands.extend(inside.operands)
    if inside.missing is not None:
        out.notes.append(f"what decides in {name}() could not be looked at: {inside.missing}")
    return inside.missing is None
