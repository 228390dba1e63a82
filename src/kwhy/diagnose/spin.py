"""Why a thread burns time: from watching it to an answer."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kwhy import arch as architectures
from kwhy.diagnose import spin_words
from kwhy.diagnose.spin_case import Case, who
from kwhy.diagnose.spin_deep import contradiction, look_inside, questions
from kwhy.diagnose.spin_elsewhere import (
    asleep,
    busy,
    faulting,
    interrupts,
    leaves,
    unseen,
    user,
)
from kwhy.diagnose.spin_end import Ending, ending
from kwhy.diagnose.spin_fault import faults
from kwhy.diagnose.spin_frames import (
    Place,
    comes_and_goes,
    function_of,
    interrupted,
    on_its_stacks,
    places,
    stays,
)
from kwhy.diagnose.spin_lock import spun_lock
from kwhy.diagnose.spin_loop import Watched, candidates, registers, watch
from kwhy.diagnose.spin_recover import recoveries
from kwhy.diagnose.spin_ring import ring
from kwhy.diagnose.spin_safe import forbidden
from kwhy.diagnose.spin_watch import STARTS, Keeper, Live, Look, Seen, Watcher
from kwhy.errors import FeatureError
from kwhy.flow.cfg import Code
from kwhy.flow.loops import loops
from kwhy.kernel.model import Kernel
from kwhy.record.samples import Sample
from kwhy.verdict.common import Evidence as Account
from kwhy.verdict.common import KernelId
from kwhy.verdict.spin import Block, Frame, Loop, Registers, Spin, State, Thread

PERIOD = 2_970_000  # ns between samples: no divisor of a tick
MOST = 0.9  # share of samples that makes something the rule
HARDLY = 0.05  # share of the time that a thread runs which does not burn it
ENTRY = 0.3  # s, at least, of watching who is entered
WINDOW = 0.2  # s of watching what is passed to callees
MAX_STACK = 12
MAX_NAMED = 4


def explain(evidence: Keeper, kernel: Kernel, live: Live | None = None) -> Spin:
    """The answer about the thread that the question names; ``live`` when it can be asked.

    Raises FeatureError where sampling is forbidden, NothingToExplain when there is nobody to watch.
    """
    arch = architectures.of(kernel.arch)
    question = evidence.facts.question
    seconds = float(str(question.get("seconds") or 3.0))
    watcher = Watcher(evidence, arch.sample_registers, live)
    look = watcher.clock(PERIOD, seconds / 2)
    seen = look.seen[0]
    if seen.error is not None:
        raise FeatureError(f"the thread cannot be sampled: {seen.error}", "perf_events")
    base = _base(kernel, look, seen, question)
    case = Case(kernel, Code(kernel, arch), watcher, base)
    if not seen.samples:
        return unseen(case, look)
    share = len(seen.samples) * PERIOD / 1e9 / look.seconds
    if share < HARDLY and look.after is not None and look.after["state"] != "R":
        return asleep(case, look, f"hardly runs, {share:.1%} of the time")
    inside = [sample for sample in seen.samples if not sample.user]
    if len(inside) < (1 - MOST) * len(seen.samples):
        return user(case, look, seen.samples)
    on_top = [s for s in inside if interrupted(kernel, s, arch.is_interrupt_entry)]
    own = [s for s in inside if s not in on_top]
    if len(own) < (1 - MOST) * len(inside):
        return interrupts(case, on_top)
    watcher.forbidden = forbidden(kernel, case.code, watcher, look)
    fit = [sample for sample in own if sample.chain] or own
    watcher.starts = fit[:: -(-len(fit) // STARTS)]
    watcher.its_own = on_its_stacks(own, arch)
    return _in_kernel(case, look, own)


def _base(kernel: Kernel, look: Look, seen: Seen, question: Any) -> Spin:
    who = look.before
    user = sum(sample.user for sample in seen.samples)
    return Spin(
        summary="",
        confidence="unknown",
        kernel=KernelId(release=kernel.release, build_id=kernel.build_id, arch=kernel.arch),
        evidence=Account(rounds=1, events=len(seen.samples), lost=seen.lost),
        thread=Thread(
            pid=int(who["pid"]),
            tid=int(who["tid"]),
            comm=str(who["comm"]),
            seconds=look.seconds,
            samples=len(seen.samples),
            user=user,
            ticks=look.ticks,
            chosen=question.get("chosen"),
        ),
        state="unknown",
    )


def _in_kernel(case: Case, look: Look, samples: Sequence[Sample]) -> Spin:
    found = places(case.kernel, samples)
    if not found:
        return case.answer(summary=f"{who(case)} runs kernel code that has no symbol")
    taken = faults(case.kernel, case.code.arch, case.watcher, look, samples, ENTRY)
    if taken is not None:
        return faulting(case, taken, look, samples)
    window = max(0.1, look.seconds / 12)
    if comes_and_goes(case.kernel, case.code.arch, look.seen[0].samples):
        return busy(case, found[0], samples)
    goes_through = functools.partial(_goes_through, case)
    index, entries = stays(case.watcher, found, max(window, ENTRY), goes_through)
    if index is None:
        return busy(case, found[0], samples)
    place = found[index]
    stack = _stack(case.kernel, place)
    entry = entries.get(place.entry)
    unproven = entry is None or entry.error is not None or entry.offline
    if unproven and entry is not None:
        refused = case.watcher.forbidden or f"no breakpoint can be set: {case.watcher.refused}"
        instead = "its code, gone on with offline from samples, tells" if entry.offline else (
            "samples alone tell"
        )
        case.notes.append(f"{refused}; {instead}")
    others = [f"{each['comm']} ({each['tid']})" for each in look.running]
    lock = spun_lock(case.kernel, case.code, case.watcher, place, samples, others)
    watched = _watch(case, place, window)
    if lock is not None:
        return case.answer(
            summary=f"{who(case)} spins on a {lock.kind} in {lock.wanted_by}(), and "
            f"{lock.holder}",
            confidence="deduced" if unproven else "observed",
            state="lock",
            lock=lock,
            loop=_loop(case, watched, entry) if watched is not None else None,
            stack=stack,
            ends_when=f"{lock.name or 'the lock'} is released",
            advice=("who holds a spinlock is not recorded; CONFIG_DEBUG_SPINLOCK does that",),
        )
    if watched is None:
        return case.answer(
            summary=f"{who(case)} stays in {place.name}(), but no loop of it holds the samples: "
            f"they are in {leaves(case.kernel, samples)}",
            state="looping",
            stack=stack,
        )
    return _looping(case, watched, entry, stack)


def _watch(case: Case, place: Place, window: float) -> Watched | None:
    """The loop of the frame that stays; where that goes round in none, one of the functions that it
    called and that hand over to each other."""
    watched = watch(case.code, case.watcher, case.code.function(place.entry), place, window)
    if watched is None or not watched.passed(watched.loop.head):
        found = ring(case.kernel, case.code, place)
        around = watch(case.code, case.watcher, *found, window) if found is not None else None
        if around is not None and around.passed(around.loop.head):
            return around
    return watched


def _goes_through(case: Case, place: Place) -> bool:
    """Whether a frame that cannot be watched (the way into the kernel) calls again and again what
    is in no loop of it: then it was left, and entered again."""
    held = candidates(case.code.function(place.entry), place)
    if held and held[0][1] >= MOST * len(place.at):
        return False
    called = Counter(function_of(case.kernel, address)[0] for address in place.below)
    some = [entry for entry, _ in called.most_common(MAX_NAMED) if entry is not None]
    seen = case.watcher.live_breakpoints(some, ENTRY)
    return any(each.count > 1 for each in seen.values())


def _stack(kernel: Kernel, place: Place) -> tuple[Frame, ...]:
    out = []
    for address in [place.at[0], *(back - 1 for back in place.above)][:MAX_STACK]:
        frames = kernel.frames(address)
        symbol = kernel.symbols.at(address)
        name = symbol.name if symbol else f"{address:#x}"
        line = frames[-1] if frames else None
        out.append(
            Frame(function=name, file=line.file if line else None, line=line.line if line else None)
        )
    return tuple(out)


def _loop(case: Case, watched: Watched, entry: Seen | None) -> Loop:
    kernel, place = case.kernel, watched.place
    functions = spin_words.functions(kernel, watched)
    function = functions[0]
    lines = spin_words.loop_lines(kernel, watched)
    head = kernel.frames(watched.loop.head)
    blocks = []
    for start in sorted(watched.loop.body):
        segment = watched.function.segments[start]
        inside = sum(start <= address < segment.last.end for address in place.at)
        blocks.append(
            Block(
                offset=_inside(kernel, function, start), hits=watched.count(start), samples=inside
            )
        )
    return Loop(
        function=function,
        head=_inside(kernel, function, watched.loop.head),
        file=head[-1].file if head else None,
        line=min((each.line for each in lines), default=None),
        blocks=tuple(blocks),
        lines=lines,
        samples_inside=watched.inside,
        samples_outside=len(place.at) - watched.inside,
        entry_hits=None if entry is None or entry.error or entry.offline else entry.count,
        head_hits=watched.count(watched.loop.head),
        exit_hits=watched.exit_hits(),
        also=tuple(functions[1:]),
    )


def _inside(kernel: Kernel, function: str, address: int) -> str:
    """``+0x1b`` of an address in ``function``, ``other+0x1b`` elsewhere."""
    return spin_words.offset(kernel, address).removeprefix(function)


def _looping(case: Case, watched: Watched, entry: Seen | None, stack: tuple[Frame, ...]) -> Spin:
    kernel, arch = case.kernel, case.code.arch
    known = registers(watched, arch)
    end = ending(kernel, case.code, case.watcher, watched, known)
    loop = _loop(case, watched, entry)
    branches = spin_words.branches(kernel, watched)
    state, confidence = _judge(watched, loop, end)
    if state == "looping" and end.left_in is not None:
        case.notes.append(f"of this loop {end.left_in}, but a loop around it may begin it again")
    if state == "endless":
        case.notes.append(
            "nothing in the loop changes what its ways out ask for: if anything ends it, that is "
            "another thread, an interrupt or a device"
        )
    summary, when = _sentence(case, loop, end, state, branches)
    calls = spin_words.calls(kernel, case.code, arch, watched, end.calls)
    yields = [call.function for call in calls if "cond_resched" in call.function]
    if yields:
        case.notes.append(
            "the loop offers the processor to others (cond_resched), so no lockup report comes"
        )
    case.notes.extend(end.notes)
    asked = questions(kernel, case.code, case.watcher, watched, WINDOW)
    deep = look_inside(kernel, case.watcher, asked)
    return case.answer(
        summary=summary,
        confidence=confidence,
        state=state,
        loop=loop,
        branches=tuple(branches),
        calls=tuple(calls),
        registers=Registers(
            constant={n: f"{v.first:#x}" for n, v in known.items() if v.how == "constant"},
            varying=tuple(n for n, v in known.items() if v.how != "constant"),
        ),
        operands=tuple(end.operands),
        stack=stack,
        ends_when=when,
        recovery=recoveries([frame.function for frame in stack], branches),
        look=tuple(f"kwhy call '{question.text}' --why" for question in asked),
        deep=tuple(deep),
        contradiction=contradiction(deep),
        source=spin_words.excerpt(kernel, loop.function, loop.lines),
    )


def _judge(watched: Watched, loop: Loop, end: Ending) -> tuple[State, Any]:
    """The state, and how sure it is. Endless only if the loop was seen to stay and cannot end."""
    proven = loop.head_hits and loop.entry_hits == 0 and loop.exit_hits in (0, None)
    if end.left_in is not None:
        nested = any(watched.loop.body < each.body for each in loops(watched.function))
        return ("looping", "unknown") if nested else ("slow", "observed" if proven else "deduced")
    if watched.left():
        return "looping", "unknown"
    if end.constant and watched.stayed():
        return "endless", "observed" if proven and loop.exit_hits == 0 else "deduced"
    return "looping", "unknown"


def _sentence(
    case: Case, loop: Loop, end: Ending, state: State, branches: Sequence[Any]
) -> tuple[str, str]:
    """The summary, and what would have to change."""
    where = f"{loop.function}()"
    if loop.also:
        others = ", ".join(f"{name}()" for name in loop.also)
        where += f" and {others}, which hand over to each other"
    ways = [b for b in branches if b.leaves and b.wanted is not None]
    when = " or ".join(
        dict.fromkeys(f"{b.expr} becomes {'true' if b.wanted else 'false'}" for b in ways)
    )
    if state == "slow":
        assert end.left_in is not None
        return (
            f"{who(case)} is slow, not stuck: the loop in {where} counts, and {end.left_in}",
            when,
        )
    if state == "endless":
        stuck = [b for b in ways if b.always is not None]
        why = "; ".join(
            dict.fromkeys(f"{b.expr} is always {'true' if b.always else 'false'}" for b in stuck)
        )
        because = f": {why}" if why else ": it has no way out"
        return f"{who(case)} is in an endless loop in {where}{because}", when
    moving = [each.expr for each in end.operands if each.how in ("counter", "varying")]
    hangs = f": it hangs on {', '.join(moving[:3])}, which changes" if moving else ""
    return (
        f"{who(case)} was not seen to leave the loop in {where}; whether it ever will is not "
        f"known{hangs}",
        when,
    )
