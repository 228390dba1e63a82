"""A recorded system call, executed again offline: does it go the same way, and what did it see?

The task must still be there as it was when the call failed (held at its exit, say), because its
files, credentials and memory are read. Whether the second execution is the first one's equal is not
assumed but compared: by the returned value, and by the calls that the recording shows.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kwhy.arch import x86_64_emulation as arch
from kwhy.emulate.call import Caller, Outcome, Passed
from kwhy.emulate.history import Branch, History
from kwhy.emulate.limits import SKIPS, SLEEPS, STOPS
from kwhy.emulate.machine import GENERAL, MAX_BLOCKS
from kwhy.emulate.syscall import interface, run
from kwhy.errors import UsageError
from kwhy.flow.cfg import Code
from kwhy.record.model import Call
from kwhy.record.model import SyscallRecord as Record

_AROUND = frozenset({name for name, why in STOPS.items() if why == SLEEPS}) | {
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


@dataclass(frozen=True, slots=True)
class Step:
    """A call in an execution: the function, what it called, what it returned (None: not back)."""

    function: int
    children: tuple["Step", ...]
    ret: int | None


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
    ``difference`` is None when the recording agrees, else a sentence on the first disagreement.
    ``sights`` are the watched instructions that ran, with their steps, in order.
    """

    outcome: Outcome
    history: History
    root: Step
    difference: str | None
    sights: list[tuple[int, Sight]]

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
) -> Outcome:
    """Execute the call without comparing; what the watched instructions saw goes to ``sights``.

    ``user`` has pages of the task's memory as the call saw them, where it has other ones by now.
    """
    face = interface(caller, record.name)
    if record.compat or face is None:
        raise UsageError(f"{record.name}() cannot be executed again: it has no 64-bit entry")
    scene = caller.scene(detail)
    scene.turn_back(record.enter)
    scene.put_user_pages(user or {})
    if sights is not None:
        get = scene.machine.get

        def note(address: int) -> None:
            registers = {name: get(name) for name in GENERAL}
            sights.append(Sight(address, {**registers, "flags": get(arch.FLAGS)}))

        scene.machine.watch(watch, note)
    arguments = [Passed(f"{value:#x}", value, None) for value in record.args]
    return run(caller, scene, face, arguments, limit=limit)


def replay(
    caller: Caller,
    record: Record,
    code: Code,
    limit: int = MAX_BLOCKS,
    watch: Collection[int] = (),
    user: Mapping[int, bytes] | None = None,
) -> Replay:
    """Execute ``record``'s call again as the caller's task, from its recorded arguments.

    ``caller`` is of that task (``Caller(kernel, task=record.tid)``), ``code`` of the same kernel.
    ``watch`` are addresses of instructions whose registers are wanted; ``user`` see :func:`enter`.
    Raises UsageError for a call that cannot be entered (of a 32-bit program, or unknown).
    """
    sights: list[Sight] = []
    outcome = enter(
        caller, record, user, limit=limit, detail=True, watch=watch, sights=sights
    )
    history = outcome.history(code)
    root = _steps(history)
    difference = _difference(outcome, root, record, code)
    return Replay(outcome, history, root, difference, _placed(history, sights))


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
        made[frame.number] = Step(frame.entry, children, frame.result)
    return made[0]


def _difference(outcome: Outcome, root: Step, record: Record, code: Code) -> str | None:
    if not outcome.returned:
        return f"it does not return: {outcome.end.reason}"
    got = int(outcome.result.value_())
    if got != record.ret:
        return f"it returns {got}, the recording {record.ret}"
    if record.entry is None:
        return "the recording does not show the call's own function"
    if record.lost:
        return "the recording has gaps"
    return _compare(code, root, record.entry)


def _compare(code: Code, step: Step, call: Call) -> str | None:
    """The first place where two call graphs differ, among functions that the tracer sees."""
    mine = [each for each in _seen(code, step.children) if code.name(each.function) not in _AROUND]
    theirs = [each for each in _traced(call.children) if code.name(each.function) not in _AROUND]
    for number, other in enumerate(theirs):
        name = code.name(other.function)
        if number >= len(mine):
            return f"{code.name(call.function)}() called {name}(), and does not now"
        if mine[number].function != other.function:
            now = code.name(mine[number].function)
            return f"{code.name(call.function)}() called {name}(), and now {now}()"
        found = None if name in SKIPS or name in _CHANCE else _compare(code, mine[number], other)
        if found is not None:
            return found
    if len(mine) > len(theirs):
        more = code.name(mine[len(theirs)].function)
        return f"{code.name(call.function)}() did not call {more}(), and does now"
    return None


def _seen(code: Code, steps: Sequence[Step]) -> Iterator[Step]:
    """Calls that leave a trace; of one that does not, what it calls stands in its place."""
    for step in steps:
        if code.traceable(step.function):
            yield step
        else:
            yield from _seen(code, step.children)


def _traced(calls: Sequence[Call]) -> Iterator[Call]:
    for call in calls:
        if call.kind == "traced":
            yield call
        elif call.kind == "implicit":
            yield from _traced(call.children)
