"""How much is left of a loop that counts: the rounds, and the time that they take."""

from collections.abc import Sequence

from kwhy.arch import Arch
from kwhy.diagnose.spin_loop import Values, Watched, classify
from kwhy.flow.cfg import Segment
from kwhy.flow.ir import Expr, Insn
from kwhy.flow.loops import Sources, segment_at
from kwhy.record.samples import Sample

MAX_STEPS = 20_000  # stretches of code on the way round
MOMENTS = 3  # samples that show a counter's pace


def left_in(
    watched: Watched,
    undisturbed: Sequence[Sample],
    arch: Arch,
    segment: Segment,
    source: Sources,
    known: dict[str, Values],
) -> str | None:
    """What is left of a loop that compares a counter with a bound that does not move."""
    for name in source.carried:
        counter = known.get(name)
        if counter is None or counter.how != "counter" or not counter.step:
            continue
        bound = _bound(segment, name, known)
        if bound is None or not _only_counts(watched, arch, name, counter.step > 0):
            continue
        left = bound - counter.last
        if segment.last.condition in ("eq", "ne") and left % counter.step:
            continue  # it steps over the bound
        if (left > 0) == (counter.step > 0) and left:
            time = _time(watched, undisturbed, name, left)
            return f"{abs(left // counter.step):,} rounds are left{time}"
    return None


def _only_counts(watched: Watched, arch: Arch, name: str, up: bool) -> bool:
    """Whether there is no way round, taken or not, that sets the counter back."""
    found = _steps(watched, arch, name)
    return found is not None and all(step >= 0 if up else step <= 0 for step in found)


def _steps(watched: Watched, arch: Arch, name: str) -> set[int] | None:
    """What a round adds to a register, by every way that leads round; None if one may do anything
    else to it."""
    loop = watched.loop
    segments = {start: watched.function.segments[start] for start in loop.body}
    before = {
        start: [at for at, segment in segments.items() if start in segment.successors()]
        for start in loop.body
    }
    todo = [(at, name, 0) for at in before[loop.head]]
    seen = set(todo)
    found = set()
    while todo:
        start, register, added = todo.pop()
        segment = segments[start]
        if len(seen) > MAX_STEPS or (segment.kind == "call" and register in arch.clobbered):
            return None
        for insn in reversed(segment.insns):
            if register in insn.defines:
                moved = _moved(insn)
                if moved is None:
                    return None
                register, added = moved[0], added + moved[1]
        if start == loop.head:
            if register != name:
                return None
            found.add(added)
            continue
        onward = {(at, register, added) for at in before[start]} - seen
        seen |= onward
        todo += onward
    return found


def _moved(insn: Insn) -> tuple[str, int] | None:
    """The register that an instruction takes its result from, and what it adds; None if it does
    anything else."""
    made = [effect for effect in insn.effects if effect[0] != "flags"]
    if len(made) != 1 or insn.kind == "select" or made[0][0] != "set" or made[0][2] < 4:
        return None
    match made[0][3]:
        case ("reg", source, _):
            return source, 0
        case ("bin", "add", _, ("reg", source, _), ("const", value)):
            return source, value - (value >> 63 << 64)
        case ("bin", "sub", _, ("reg", source, _), ("const", value)):
            return source, -value
    return None


def _bound(segment: Segment, name: str, known: dict[str, Values]) -> int | None:
    """What the comparison at the end of ``segment`` compares register ``name`` with."""
    for insn in reversed(segment.insns):
        for effect in insn.effects:
            if effect[0] != "flags":
                continue
            _, kind, _, a, b = effect
            if kind != "cmp":
                return None
            for mine, other in ((a, b), (b, a)):
                if mine[0] == "reg" and mine[1] == name:
                    return _fixed(other, known)
            return None
    return None


def _fixed(expr: Expr, known: dict[str, Values]) -> int | None:
    if expr[0] == "const":
        return int(expr[1])
    if expr[0] == "reg":
        found = known.get(expr[1])
        return found.first if found is not None and found.how == "constant" else None
    return None


def _time(watched: Watched, undisturbed: Sequence[Sample], name: str, left: int) -> str:
    """How long a counter needs to its bound: at its pace before there were breakpoints, for each
    hit of one takes far longer than a round. Where that is not known, at most so long."""
    inside = [sample for sample in undisturbed if _in_body(watched, sample)]
    values = [sample.registers[name] for sample in inside if name in sample.registers]
    found = classify([*values, watched.rounds[0].registers[name]])
    if len(values) >= MOMENTS and found is not None and found.how == "counter":
        pace, most = _pace(inside, name), "about"
    else:
        pace, most = _pace(watched.rounds, name), "at most"
    return f", {most} {_duration(abs(left) / pace)} at this pace" if pace else ""


def _in_body(watched: Watched, sample: Sample) -> bool:
    segment = segment_at(watched.function, sample.address)
    return segment is not None and segment.start in watched.loop.body


def _pace(samples: Sequence[Sample], name: str) -> float | None:
    """How fast a counter moves, per second."""
    first, last = samples[0], samples[-1]
    seconds = (last.time - first.time) / 1e9
    moved = abs(last.registers[name] - first.registers[name])
    return moved / seconds if seconds > 0 and moved else None


def _duration(seconds: float) -> str:
    """A time in the largest unit of which it has two."""
    for size, unit in ((365.25 * 86400, "years"), (86400, "days"), (3600, "hours")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"
