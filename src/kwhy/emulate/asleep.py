"""A recorded call that slept in its middle, executed again.

Where the execution comes to a sleep that the recording shows, it goes on as woken, at the recorded
time. What others did meanwhile is as memory shows it now; but not in memory that the execution
itself has written before: that an execution has of its own, and nobody completes its requests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kwhy.emulate.history import History
from kwhy.emulate.limits import SLEEPS, STOPS
from kwhy.emulate.steps import Access
from kwhy.flow.cfg import Code
from kwhy.record.model import Call, SyscallRecord

SLEEPERS = frozenset(name for name, why in STOPS.items() if why == SLEEPS)
"""Every way to sleep ends in one of these."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """A recorded sleep: in which function, called from where, from when until when (ns)."""

    function: int
    site: int | None
    begin: int
    end: int


class Sleeps:
    """The sleeps of a recorded call, met in their order by an execution."""

    def __init__(self, found: Sequence[Sleep]) -> None:
        self._left = list(found)

    def met(self, function: int, site: int) -> Sleep | None:
        """The next recorded one in that function and called from there; None: there is none."""
        for at, sleep in enumerate(self._left):
            if sleep.function == function and sleep.site in (site, None):
                del self._left[: at + 1]
                return sleep
        return None


def sleeps(code: Code, record: SyscallRecord) -> list[Sleep]:
    """Where a recorded call waited, in order; not where it was only made to give way."""
    if record.entry is None:
        return []
    calls = list(record.entry.walk())
    found: list[Sleep] = []
    at = 0
    while at < len(calls):
        call = calls[at]
        if call.kind != "traced" or code.name(call.function) not in SLEEPERS:
            at += 1
            continue
        at += sum(1 for _ in call.walk())
        end = calls[at].time if at < len(calls) else record.exit
        found.append(Sleep(call.function, call.site, call.time, end))
    return found


def waits(code: Code, call: Call) -> bool:
    """Whether a call slept, itself or in a function that it called for that."""
    inner = [child for child in call.children if child.kind != "interrupt"]
    below = [each for child in inner for each in (child, *_own(child))]
    return any(code.name(each.function) in SLEEPERS for each in below)


def _own(call: Call) -> Iterator[Call]:
    """What a call called; through those that leave no trace."""
    for child in call.children:
        yield child
        if child.kind == "implicit":
            yield from _own(child)


def woken(history: History) -> list[int]:
    """The steps at which an execution went on as woken."""
    return [step for step, over in _met(history) if over]


def stopped_asleep(history: History) -> bool:
    """Whether an execution ended at a sleep."""
    return any(not over for _, over in _met(history))


def _met(history: History) -> list[tuple[int, bool]]:
    """The step of each sleep, and whether the execution went on from it."""
    starts = history.steps_of.starts
    return [
        (int(starts[cut.block]), cut.block + 1 < len(starts))
        for cut in history.track.cuts
        if cut.block >= 0 and history.code.name(cut.at) in SLEEPERS
    ]


def read_behind(history: History, branch: int) -> list[Access]:
    """The reads of memory that what a branch compares came from, by data alone."""
    steps = history.steps_of
    todo, done = list(history.asked(branch)), set()
    found: list[Access] = []
    while todo:
        step = todo.pop()
        if step in done:
            continue
        done.add(step)
        found += [access for access in steps.accesses(step) if not access.write]
        todo += history.data(step)
    return found


def private(history: History, access: Access) -> bool:
    """Whether a read was of what the execution itself had written before it slept: nobody else has
    changed it, as may have happened then."""
    steps = history.steps_of
    slept = [step for step in woken(history) if step <= steps.access_step(access.number)]
    writes = steps.writers(access.address, access.size, access.number) if slept else []
    return any(steps.access_step(write.number) < slept[-1] for write in writes)
