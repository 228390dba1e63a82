"""An execution led past what the recorded call itself has changed, or others while it slept.

A call notes what it found (a permission in ``inode->i_opflags``, a time of access), and executed
again goes another way for it. Such a branch is made to go the recorded way, which counts only when

- the execution then is the recorded call as a whole,
- memory that the branch asked is written later on by that very execution, or may have been changed
  by others while the recorded call slept, or has the time, and
- no other branch there that is made to turn does as well.
"""

import itertools
import time
from collections.abc import Callable, Iterator

from kwhy.emulate.asleep import private, read_behind, woken
from kwhy.emulate.history import History
from kwhy.emulate.limits import holds_time
from kwhy.emulate.reach import Owner, reachable
from kwhy.emulate.replay import Replay, Turn
from kwhy.emulate.slice import asked
from kwhy.emulate.steps import Access
from kwhy.flow.cfg import Code

MOST = 4
"""Turns in one execution."""
PATIENCE = 15.0
"""Seconds to look for them."""

Run = Callable[[tuple[Turn, ...]], Replay]


def led(run: Run, done: Replay) -> Replay | None:
    """The execution that is the recorded call by turning branches of ``done``; None: there is none.

    ``run`` executes the call again with these turns.
    """
    found: list[Replay] = []
    todo = [done]
    deadline = time.monotonic() + PATIENCE
    while todo:
        before = todo.pop()
        for turn in _turns(before):
            if time.monotonic() > deadline:
                return None  # another one may be left
            again = run((*before.turns, turn))
            if again.agrees and all(_may(again.history, each) for each in again.turns):
                found.append(again)
            elif _further(before, again) and len(again.turns) < MOST:
                todo.append(again)
    return found[0] if len(found) == 1 else None


def swayed(run: Run, done: Replay, owner: Owner) -> int | None:
    """A watched branch that others may have decided while the call slept; None: there is none.

    That is one which asked memory that ``done`` had written before it slept and others could reach,
    so that it lacks what they did, where the other way would be the recorded call as well.
    """
    history, slept = done.history, woken(done.history)
    deadline = time.monotonic() + PATIENCE
    for step, sight in done.sights:
        if not slept or step < slept[0]:
            continue
        last = max(each for each in slept if each <= step)
        reads = [read for read in read_behind(history, step) if private(history, read)]
        if not any(reachable(history, read.address, last, owner) for read in reads):
            continue
        turn = _turn(history, step)
        if turn is None or time.monotonic() > deadline or run((*done.turns, turn)).agrees:
            return sight.address
    return None


def _further(done: Replay, again: Replay) -> bool:
    """Whether more of the recorded calls are matched."""
    old, new = done.difference, again.difference
    return old is not None and new is not None and new.matched > old.matched


def _turns(done: Replay) -> Iterator[Turn]:
    """The branches where the ways may have parted, the last first."""
    parted, history = done.difference, done.history
    if parted is None or parted.frame is None:
        return
    steps = [
        step
        for frame in _inside(history, parted.frame, parted.first)
        for step in history.branches_by_frame.get(frame, ())
        if parted.first <= step < parted.last
    ]
    for step in sorted(steps, reverse=True):
        if parted.waits and not read_behind(history, step):
            continue
        turn = _turn(history, step, parted.waits)
        entry = history.all_frames[history.frame_at[step]].entry
        if turn is None:
            continue
        if parted.waits or _leads(history.code, entry, turn.target, parted.wanted):
            yield turn


def _turn(history: History, step: int, waits: bool = False) -> Turn | None:
    """The other way of the branch that ran as ``step``; a conditional move has none."""
    branch, insn = history.branches[step], history.steps_of.insn(step)
    if insn.kind != "branch":
        return None
    run = history.steps[:step].count(branch.address)
    return Turn(branch.address, run, insn.end if branch.taken else branch.target, waits)


def _leads(code: Code, entry: int, start: int, wanted: int | None) -> bool:
    """Whether control can go from ``start`` to a call of ``wanted`` (None: to the function's end)
    without another call that would leave a trace. A callee without one may make any call."""
    segments = code.function(entry).segments
    todo, seen = [start], {start}
    while todo:
        segment = segments.get(todo.pop())
        if segment is None:
            return True  # out of the function, or into the middle of a segment
        if segment.kind in ("call", "tail"):
            callee = segment.target
            if callee is None or callee == wanted or not code.traceable(callee):
                return True
            continue
        if segment.kind == "return" and wanted is None:
            return True
        onward = [to for to in segment.successors() if to not in seen]
        seen.update(onward)
        todo += onward
    return False


def _inside(history: History, frame: int, first: int) -> set[int]:
    """A frame and those of functions without a trace in it."""
    found = {frame}
    for each in history.all_frames:
        quiet = not history.code.traceable(each.entry)
        if each.parent in found and each.by >= first and quiet:
            found.add(each.number)
    return found


def _may(history: History, turn: Turn) -> bool:
    """Whether what the turned branch asked may have been something else in the recorded call."""
    runs = (step for step, address in enumerate(history.steps) if address == turn.address)
    step = next(itertools.islice(runs, turn.run, None))
    reads = read_behind(history, step)
    waited = turn.waits and bool(reads)
    return waited or any(private(history, read) for read in reads) or _varies(history, step)


def _varies(history: History, step: int) -> bool:
    """Whether memory that the branch of a step asked is written afterwards, or was by the
    instruction that read it (test_and_set_bit()); or has the time: that is of the last tick, which
    may have been noticed late."""
    symbols = history.code.kernel.symbols
    steps = history.steps_of
    frame = history.all_frames[history.frame_at[step]]
    later = {
        byte for access in steps.written(steps.first_access(step)) for byte in _bytes(access)
    }
    for each in asked(history, step):
        accesses = steps.accesses(each) if each >= frame.begin else []
        at_once = {byte for access in accesses if access.write for byte in _bytes(access)}
        for access in accesses:
            if holds_time(symbols.at(access.address)):
                return True
            changed = any(byte in later or byte in at_once for byte in _bytes(access))
            if access.write or not changed:
                continue
            if not any(steps.writers(access.address, access.size, access.number)):
                return True
    return False


def _bytes(access: Access) -> range:
    return range(access.address, access.address + access.size)
