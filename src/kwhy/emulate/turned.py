"""An execution led past what the recorded call itself has changed.

A call notes what it found (a permission in ``inode->i_opflags``, a time of access), and executed
again goes another way for it. Such a branch is made to go the recorded way, which counts only when

- the execution then is the recorded call as a whole,
- memory that the branch asked is written later on by that very execution, and
- no other branch there that is made to turn does as well.
"""

import itertools
import time
from collections.abc import Callable, Iterator

from kwhy.emulate.history import History
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
            if again.agrees and all(_changes(again.history, each) for each in again.turns):
                found.append(again)
            elif _further(before, again) and len(again.turns) < MOST:
                todo.append(again)
    return found[0] if len(found) == 1 else None


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
        if parted.first <= step < parted.last and history.steps_of.insn(step).kind == "branch"
    ]
    for step in sorted(steps, reverse=True):
        branch = history.branches[step]
        other = history.steps_of.insn(step).end if branch.taken else branch.target
        entry = history.all_frames[history.frame_at[step]].entry
        if _leads(history.code, entry, other, parted.wanted):
            run = history.steps[:step].count(branch.address)
            yield Turn(branch.address, run, other)


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


def _changes(history: History, turn: Turn) -> bool:
    """Whether memory that the turned branch asked is written afterwards, or was by the instruction
    that read it (test_and_set_bit())."""
    steps = history.steps_of
    runs = (step for step, address in enumerate(history.steps) if address == turn.address)
    step = next(itertools.islice(runs, turn.run, None))
    frame = history.all_frames[history.frame_at[step]]
    later = {
        byte for access in steps.written(steps.first_access(step)) for byte in _bytes(access)
    }
    for each in asked(history, step):
        accesses = steps.accesses(each) if each >= frame.begin else []
        at_once = {byte for access in accesses if access.write for byte in _bytes(access)}
        for access in accesses:
            changed = any(byte in later or byte in at_once for byte in _bytes(access))
            if access.write or not changed:
                continue
            if not any(steps.writers(access.address, access.size, access.number)):
                return True
    return False


def _bytes(access: Access) -> range:
    return range(access.address, access.address + access.size)
