"""A failed call executed again offline, and what that tells of a failure that left several ways.

The process is kept at its exit (``hold`` and ``others`` of ``kwhy.link``), so its memory, files and
credentials are still what the call saw, unless the call or the task changed them. That is not
assumed: an execution counts only when its result and its calls are the recorded ones.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kwhy.case.evidence import PAGE, Evidence
from kwhy.diagnose.analysis import Analysis, Watched
from kwhy.diagnose.moving import Moving, reread
from kwhy.emulate import Caller, Replay, replay
from kwhy.emulate.asleep import sleeps, woken
from kwhy.emulate.history import History
from kwhy.emulate.reach import objects
from kwhy.emulate.replay import UNCOMPARED, Clock, Sight, Turn
from kwhy.emulate.steps import FLAGS
from kwhy.emulate.turned import led, swayed
from kwhy.errors import KwhyError
from kwhy.flow.cfg import Code
from kwhy.flow.explore import Callee, Decision, Hit
from kwhy.flow.origin import Called, Tracer
from kwhy.flow.terms import parts
from kwhy.kernel.model import Kernel
from kwhy.record.model import Call, SyscallRecord

PATIENCE = 5.0
"""Seconds to wait for memory that does not contradict itself,"""
ROUNDS = 8
"""but on a slow machine at least so many executions."""
TRIES = 2
"""How often a call that slept is led past what has changed, each time on memory read anew."""
_CLOCKS: tuple[Clock, ...] = ("end", "before")
_CLOCKS_ASLEEP: tuple[Clock, ...] = ("begin", "before", "end")
"""At which times a call is led that was another one when it began at its own."""
CLUSTER = 64 * PAGE
"""Of the memory map: the ``struct page`` of 4096 pages."""
NEAR = 50_000_000
"""Nanoseconds between the end of a call in the recording and the snapshot that is of it."""


@dataclass(frozen=True, slots=True)
class Held:
    """A process kept at its exit. ``user``: pages of its memory as they were when the call that is
    to be explained returned (by address); of the rest there is only what it left behind. ``tasks``:
    its threads that stand there; the others have given up what they had."""

    user: dict[int, bytes]
    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Again:
    """An accepted second execution: ``record`` is the call as it was executed, with all its calls,
    also those that leave no trace; ``watched`` the registers at each watched branch that ran;
    ``loose`` are the identities of its calls that were not compared with the recording."""

    record: SyscallRecord
    watched: Watched
    instructions: int
    note: str
    loose: frozenset[int]

    def proves(self, analysis: Analysis) -> bool:
        """Whether nothing that was not compared has a part in what an analysis of it found."""
        part: list[Called] = []
        for finding in analysis.findings:
            part += [frame.call for frame in finding.chain()]
            for _, decision in finding.deciding:
                part += _asked(analysis.tracer, decision)
        return not any(id(call) in self.loose for call in part)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why an execution does not count, as a sentence."""

    note: str


def user_pages(snapshots: Any, pages: bytes, record: SyscallRecord) -> dict[int, bytes]:
    """The pages of user memory taken as ``record``'s call returned; {} when there are none."""
    found: dict[int, bytes] = {}
    nearest = NEAR
    with contextlib.suppress(TypeError, ValueError):  # a case may say anything
        for time_, tid, places in snapshots or ():
            if tid == record.tid and abs(time_ - record.exit) < nearest:
                nearest = abs(time_ - record.exit)
                cut = {address: pages[PAGE * n : PAGE * (n + 1)] for address, n in places}
                found = {address: page for address, page in cut.items() if len(page) == PAGE}
    return found


def execute(
    kernel: Kernel,
    code: Code,
    record: SyscallRecord,
    branches: Collection[int],
    held: Held,
) -> Again | Refused:
    """Execute a recorded call again, watching the branches at these addresses."""
    @functools.cache
    def base() -> Caller:
        return Caller(kernel)

    def run(turns: tuple[Turn, ...] = (), clock: Clock = "begin") -> Replay:
        caller = _caller(base(), record, held.tasks)
        return replay(
            caller, record, code, watch=branches, user=held.user, turns=turns, clock=clock
        )

    def settled(turns: tuple[Turn, ...], clock: Clock) -> Replay:
        evidence = kernel.evidence
        once = functools.partial(run, turns, clock)
        return _settled(kernel, base, once, evidence) if isinstance(evidence, Moving) else once()

    try:
        done = settled((), "begin")
        # After a sleep the time of its end is quite another one than that of its beginning; and
        # much is executed only then, which may find torn what was whole up to there.
        slept = sleeps(code, record)
        clocks = _CLOCKS_ASLEEP * TRIES if slept else _CLOCKS
        for number, clock in enumerate(clocks):
            if done.agrees:
                break
            if number and clock == "begin":
                done = settled((), clock)
            other = run((), clock) if clock == "before" else done
            turned = other if other.agrees else led(functools.partial(run, clock=clock), other)
            if turned is not None:
                done = settled(turned.turns, clock)
        again = functools.partial(run, clock=done.clock)
        doubtful = swayed(again, done, objects(base().program)) if done.agrees else None
    except KwhyError as error:
        return Refused(f"the call was not executed again offline: {error}")
    if not done.agrees:
        return Refused(
            f"the call was executed again offline, which does not count: {done.difference}"
        )
    if any(turn.address in branches for turn in done.turns):
        return Refused(
            "the call was executed again offline, which does not count: what has to be decided "
            "depends on what the call itself has changed"
        )
    if doubtful is not None:
        return Refused(
            "the call was executed again offline, which does not count: what has to be decided "
            f"in {code.name(doubtful)}() depends on what others did while it slept"
        )
    return _accepted(record, done, code, branches)


def _caller(base: Caller, record: SyscallRecord, tasks: Sequence[int]) -> Caller:
    """As the thread that made the call; if it is gone, as another of the process that is kept."""
    if record.tid in tasks or not tasks:
        return base.again(record.tid)
    return base.again(record.pid if record.pid in tasks else tasks[0])


def _settled(
    kernel: Kernel, base: Callable[[], Caller], run: Callable[[], Replay], evidence: Moving
) -> Replay:
    """Execute until it is the recorded call, twice differs from it in the same, or it takes long.

    What was read before the call is another now. And pages read one after the other while their
    kernel goes on can contradict each other: the free pages of a CPU above all, the tree of the
    tasks. So those of a run that wanted more pages are all read again for the next, in one request.
    """
    deadline = time.monotonic() + PATIENCE
    before: str | None = None
    rounds = 0
    while True:
        rounds += 1
        reread(kernel)
        known = set(evidence.pages)
        late = rounds >= ROUNDS and time.monotonic() > deadline
        try:
            done = run()
        except KwhyError:
            if len(evidence.pages) == len(known) or late:
                raise
            continue
        new = evidence.pages.keys() - known
        astray = done.outcome.end.kind == "exception"  # a list that is corrupted: a BUG
        same = str(done.difference) == before and (done.outcome.returned or not new) and not astray
        if done.agrees or same or late:
            return done
        before = str(done.difference)
        _prefetch_map(base().program, kernel.evidence, new)


def _prefetch_map(program: Any, evidence: Evidence, pages: Collection[int]) -> None:
    """Where these are of the memory map, read their neighbours too.

    The lists of free pages lead through the map, and free pages lie in clusters: the next reading
    hardly ever finds the same at the head of a list, but one near it.
    """
    try:
        start = program["vmemmap"].value_()
        end = start + program.type("struct page").size * program["max_pfn"].value_()
    except LookupError:
        return
    near = {page & -CLUSTER for page in pages if start <= page < end}
    evidence.prefetch([(block, CLUSTER) for block in near])


def _accepted(record: SyscallRecord, run: Replay, code: Code, branches: Collection[int]) -> Again:
    calls = _calls(run.history, code)
    hits: dict[int, list[tuple[int, Hit]]] = {}
    for step, sight in run.sights:
        call = calls[run.history.frame_at[step]]
        values = _as_it_went(run.history, step, sight)
        hits.setdefault(id(call), []).append((step, Hit(sight.address, values)))
    executed = replace(record, calls=[calls[0]], entry=calls[0], probes=[], interrupts=[])
    made = sum(1 for _ in calls[0].walk())
    return Again(
        executed,
        Watched(hits, frozenset(branches), source="executed"),
        run.outcome.instructions,
        f"settled by executing the call again offline ({run.outcome.instructions} instructions, "
        f"{made} calls): its result and its traced calls are the recorded ones"
        + _led(run, code)
        + _slept(run),
        _loose(calls, code),
    )


def _as_it_went(history: History, step: int, sight: Sight) -> dict[str, int]:
    """What a watched branch saw, with flags by which it goes as it went.

    The emulator works out the flags when they are asked for, and not always those of that moment.
    """
    values = dict(sight.registers)
    branch, insn = history.branches.get(step), history.insn(step)
    if branch is None or insn is None:
        return values
    known = branch.kind == "branch" or history.holds(branch.condition) is not None
    flags = history.arch.flags_for(insn.condition, branch.taken) if known else None
    if flags is None:
        values.pop(FLAGS, None)
    elif history.arch.condition_holds(insn.condition, values[FLAGS]) != branch.taken:
        values[FLAGS] = flags
    return values


def _loose(calls: Sequence[Call], code: Code) -> frozenset[int]:
    return frozenset(
        id(inner)
        for call in calls
        if code.name(call.function) in UNCOMPARED
        for inner in call.walk()
    )


def _asked(tracer: Tracer, decision: Decision) -> Iterator[Called]:
    """The observed calls whose results a branch compared."""
    for side in (decision.condition or ())[1:3]:
        for part in parts(side):
            if part[0] != "ret" or not isinstance(part[2], int):
                continue
            _, _, observed = tracer.frames[part[1]]
            item = observed[part[2]]
            if isinstance(item, Callee) and item.tag is not None:
                yield item.tag


def _led(run: Replay, code: Code) -> str:
    """Where it was made to go the recorded way."""
    if not run.turns:
        return ""
    names = ", ".join(dict.fromkeys(f"{code.name(turn.address)}()" for turn in run.turns))
    whom = "the call itself or others have" if woken(run.history) else "the call itself has"
    return f"; in {names} it was led past what {whom} changed since"


def _slept(run: Replay) -> str:
    """That it went on where the call waited."""
    times = len(woken(run.history))
    if not times:
        return ""
    once = "once" if times == 1 else f"{times} times"
    return f"; it slept {once}, as recorded; what others did meanwhile is as memory shows it now"


def _calls(history: History, code: Code) -> list[Call]:
    """The executed calls by frame number; times are steps."""
    out: list[Call] = []
    for frame in history.all_frames:
        before = history.insn(frame.by) if frame.by >= 0 else None
        site = before.end if before is not None and not frame.tail else None
        call = Call(frame.entry, site, frame.by + 1, tail=frame.tail)
        if not code.traceable(frame.entry):
            call.kind = "implicit"
        out.append(call)
    for frame, call in zip(history.all_frames, out, strict=True):
        call.children = [out[called.frame] for called in frame.calls]
    return out
