"""A recorded system call, executed again offline: does it go the same way, and what did it see?

The task must still be there as it was when the call failed (held at its exit, say), because its
files, credentials and memory are read. Whether the second execution is the first one's equal is not
assumed but compared: by the returned value, and by the calls that the recording shows.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kwhy.arch import x86_64_emulation as arch
from kwhy.emulate.asleep import SLEEPERS, Sleep, Sleeps, sleeps, stopped_asleep, waits, woken
from kwhy.emulate.call import Caller, Outcome
from kwhy.emulate.history import Branch, History
from kwhy.emulate.limits import SKIPS, WAKES, YIELDS
from kwhy.emulate.machine import GENERAL, MAX_BLOCKS
from kwhy.emulate.passing import Passed
from kwhy.emulate.syscall import interface, run
from kwhy.errors import UsageError
from kwhy.flow.cfg import Code
from kwhy.record.model import Call
from kwhy.record.model import SyscallRecord as Record

_AROUND = SLEEPERS | {
    "rcu_note_context_switch", "__cond_resched", "preempt_schedule_common", "prepare_task_switch",
    "preempt_schedule_irq", "switch_mm_irqs_off", "finish_task_switch.isra.0",
}  # fmt: skip
"""What the scheduler does when it takes the processor away in the middle: no part of the call."""
_CHANCE = frozenset({
    "get_random_u8", "get_random_u16", "get_random_u32", "get_random_u64", "get_random_bytes",
    "get_random_bytes_user", "mix_pool_bytes", "blake2s_update", "blake2s_final",
})  # fmt: skip
"""Whether these fill up again depends on what was taken before (drivers/char/random.c), by the call
itself too: what they call is not compared."""
_STORES = frozenset({
    "___slab_alloc", "__slab_alloc", "__slab_free", "rmqueue_bulk", "__rmqueue_pcplist",
    "free_pcppages_bulk", "folio_batch_move_lru", "pagevec_lru_move_fn", "__pagevec_lru_add",
    "percpu_counter_add_batch", "__mark_inode_dirty", "pcpu_alloc_area", "pcpu_free_area",
})  # fmt: skip
"""What fills and empties a CPU's own stores of objects, pages and counts (mm/slub.c, mm/swap.c,
mm/page_alloc.c, mm/percpu.c, lib/percpu_counter.c) when they ran out or over, and what notes for
the writeback that an inode is dirty, unless it is: this depends on what was done before; left out
as well."""
_CLOSED = SKIPS | WAKES | YIELDS | _CHANCE
"""Functions of which only the call is compared, not what they call."""
UNCOMPARED = _AROUND | _STORES | _CLOSED
"""Functions whose insides, and whose results, may be others than in the recorded call."""


Clock = Literal["begin", "before", "end"]
"""When an execution begins: at the tick when the recorded call began; at the one before, since
ticks may be noticed late; or when it ended, since what it has written at one tick (a time) it would
not write again at the same."""


@dataclass(frozen=True, slots=True)
class Step:
    """A call in an execution: the function, what it called, what it returned (None: not back), and
    which of the history's frames it is."""

    function: int
    children: tuple["Step", ...]
    ret: int | None
    frame: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing in which an execution is not the recorded call, as a sentence's end.

    Where the calls differ: ``matched``, how many were the same before; ``frame``, the frame that
    went another way, somewhere in the steps from ``first`` to before ``last``, and ``wanted``, what
    it should have called there (None: it should have returned); ``waits``: that frame slept in the
    recording, so that what it asked may have been changed by others; ``ended``: the execution makes
    no more calls.
    """

    text: str
    matched: int = 0
    wanted: int | None = None
    frame: int | None = None
    first: int = 0
    last: int = 0
    waits: bool = False
    ended: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Turn:
    """The ``run``-th execution (from 0) of the branch at ``address`` goes on at ``target``,
    whatever it asks; ``waits`` see :class:`Difference`."""

    address: int
    run: int
    target: int
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Sight:
    """A watched instruction, about to run: its address, the registers and flags by name."""

    address: int
    registers: dict[str, int]


@dataclass(slots=True)
class Replay:
    """What became of the second execution.

    ``root`` is its call graph; ``history.branches`` are all its branches, and ``history.value``
    tells the value of any term in them (see :mod:`kwhy.diagnose.executed` for their words).
    ``difference`` is None when the recording agrees. ``sights`` are the watched instructions that
    ran, with their steps, in order. ``turns`` are the branches that were made to go the other way;
    ``clock``: at what time it began.
    """

    outcome: Outcome
    history: History
    root: Step
    difference: Difference | None
    sights: list[tuple[int, Sight]]
    turns: tuple[Turn, ...] = ()
    clock: Clock = "begin"

    @property
    def ret(self) -> int | None:
        """The returned value, signed; None when it did not come to its end."""
        result = self.outcome.result
        return None if result is None else int(result.value_())

    @property
    def agrees(self) -> bool:
        """Whether it may be taken for the recorded call."""
        return self.difference is None

    def branches(self, function: int) -> list[Branch]:
        """The branches that ran in activations of the function at an address, in order."""
        history = self.history
        return [
            branch
            for step, branch in sorted(history.branches.items())
            if history.all_frames[history.frame_at[step]].entry == function
        ]


def enter(
    caller: Caller,
    record: Record,
    user: Mapping[int, bytes] | None = None,
    *,
    limit: int = MAX_BLOCKS,
    detail: bool = False,
    watch: Collection[int] = (),
    sights: list[Sight] | None = None,
    turns: Collection[Turn] = (),
    waited: Sequence[Sleep] = (),
    clock: Clock = "begin",
) -> Outcome:
    """Execute the call without comparing; what the watched instructions saw goes to ``sights``.

    ``user`` has pages of the task's memory as the call saw them, where it has other ones by now;
    ``waited`` are sleeps that it goes on from.
    """
    face = interface(caller, record.name)
    if record.compat or face is None:
        raise UsageError(f"{record.name}() cannot be executed again: it has no 64-bit entry")
    scene = caller.scene(detail)
    scene.set_clock(record.exit if clock == "end" else record.enter, clock == "before")
    scene.sleeps = Sleeps(waited)
    scene.put_user_pages(user or {})
    if sights is not None:
        get = scene.machine.get

        def note(address: int) -> None:
            registers = {name: get(name) for name in GENERAL}
            sights.append(Sight(address, {**registers, "flags": get(arch.FLAGS)}))

        scene.machine.watch(watch, note)
    scene.machine.turn({(turn.address, turn.run): turn.target for turn in turns})
    arguments = [Passed(f"{value:#x}", value, None) for value in record.args]
    return run(caller, scene, face, arguments, limit=limit)


def replay(
    caller: Caller,
    record: Record,
    code: Code,
    limit: int = MAX_BLOCKS,
    watch: Collection[int] = (),
    user: Mapping[int, bytes] | None = None,
    turns: tuple[Turn, ...] = (),
    clock: Clock = "begin",
) -> Replay:
    """Execute ``record``'s call again as the caller's task, from its recorded arguments.

    ``caller`` is of that task (``Caller(kernel, task=record.tid)``), ``code`` of the same kernel.
    ``watch`` are addresses of instructions whose registers are wanted; ``user`` see :func:`enter`;
    ``turns`` are branches that go another way (see :mod:`kwhy.emulate.turned`).
    Raises UsageError for a call that cannot be entered (of a 32-bit program, or unknown).
    """
    sights: list[Sight] = []
    outcome = enter(
        caller, record, user, limit=limit, detail=True, watch=watch, sights=sights, turns=turns,
        waited=sleeps(code, record), clock=clock,
    )  # fmt: skip
    history = outcome.history(code)
    root = _steps(history)
    difference = _difference(outcome, history, root, record, code)
    return Replay(outcome, history, root, difference, _placed(history, sights), turns, clock)


def _placed(history: History, sights: Sequence[Sight]) -> list[tuple[int, Sight]]:
    """Each sight with its step: the n-th of an address is that instruction's n-th run."""
    wanted = {sight.address for sight in sights}
    runs: dict[int, list[int]] = {}
    for step, address in enumerate(history.steps):
        if address in wanted:
            runs.setdefault(address, []).append(step)
    coming = {address: iter(steps) for address, steps in runs.items()}
    found = ((next(coming.get(sight.address, iter(())), None), sight) for sight in sights)
    return [(step, sight) for step, sight in found if step is not None]


def _steps(history: History) -> Step:
    made: dict[int, Step] = {}
    for frame in reversed(history.all_frames):
        children = tuple(made[called.frame] for called in frame.calls)
        made[frame.number] = Step(frame.entry, children, frame.result, frame.number)
    return made[0]


def _difference(
    outcome: Outcome, history: History, root: Step, record: Record, code: Code
) -> Difference | None:
    parted = None
    if record.entry is not None and not record.lost:
        parted = _compare(code, history, root, record.entry)
    got = int(outcome.result.value_()) if outcome.returned else None
    if got == record.ret and parted is not None:
        return parted
    if got is None:
        text = f"it does not return: {outcome.end.reason}"
        if parted is not None and parted.ended and stopped_asleep(history):
            parted = _asleep(history, parted)
    elif got != record.ret:
        text = f"it returns {got}, the recording {record.ret}"
    elif record.entry is None:
        text = "the recording does not show the call's own function"
    elif record.lost:
        text = "the recording has gaps"
    else:
        return None
    return Difference(text) if parted is None else replace(parted, text=text)


def _asleep(history: History, parted: Difference) -> Difference:
    """Of an execution that came to a sleep more: where it might have gone on instead."""
    frame = history.all_frames[history.frame_at[-1]]
    caller = history.all_frames[frame.parent or 0]
    first = max((step for step in woken(history) if step > caller.begin), default=caller.begin)
    return replace(
        parted, wanted=None, frame=caller.number, first=first, last=frame.by, waits=True
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """A call that leaves a trace; ``depth`` counts only such."""

    depth: int
    function: int
    frame: int | None = None
    call: Call | None = None


def _compare(code: Code, history: History, root: Step, call: Call) -> Difference | None:
    """The first place where two call graphs differ, among functions that the tracer sees."""
    mine = list(_seen(code, root))
    theirs = list(_traced(code, call))
    pairs = itertools.zip_longest(mine, theirs)
    for at, (one, other) in enumerate(pairs):
        if one and other and (one.depth, one.function) == (other.depth, other.function):
            continue
        depth = max(each.depth for each in (one, other) if each)
        outer = next(n for n in range(at - 1, -1, -1) if mine[n].depth == depth - 1)
        around, recorded = mine[outer], theirs[outer].call
        was = code.name(other.function) if other and other.depth == depth else None
        now = code.name(one.function) if one and one.depth == depth else None
        name = code.name(around.function)
        if was is None:
            text = f"{name}() did not call {now}(), and does now"
        elif now is None:
            text = f"{name}() called {was}(), and does not now"
        else:
            text = f"{name}() called {was}(), and now {now}()"
        before = next((each for each in reversed(mine[:at]) if each.depth <= depth), around)
        assert around.frame is not None and before.frame is not None
        frame, last = history.all_frames[around.frame], history.all_frames[before.frame]
        first = frame.begin if before is around else last.end
        until = history.all_frames[one.frame].by if one and now and one.frame else frame.end
        wanted = other.function if other and was else None
        slept = recorded is not None and waits(code, recorded)
        return Difference(text, at, wanted, frame.number, first, until, slept, at == len(mine))
    return None


def _seen(code: Code, step: Step, depth: int = 0) -> Iterator[_Seen]:
    """Calls that leave a trace; of one that does not, what it calls stands in its place."""
    name = code.name(step.function)
    if depth and name in _AROUND | _STORES:
        return
    if code.traceable(step.function) or not depth:
        yield _Seen(depth, step.function, step.frame)
        depth += 1
    if name not in _CLOSED:
        for child in step.children:
            yield from _seen(code, child, depth)


def _traced(code: Code, call: Call, depth: int = 0) -> Iterator[_Seen]:
    name = code.name(call.function)
    if depth and (name in _AROUND | _STORES or call.kind == "interrupt"):
        return
    if call.kind == "traced" or not depth:
        yield _Seen(depth, call.function, call=call)
        depth += 1
    if name not in _CLOSED:
        for child in call.children:
            yield from _traced(code, child, depth)
