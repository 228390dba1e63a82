"""System calls as windows: entry paired with exit, per task, vectorised.

From the raw_syscalls events, which exist on every kernel with tracing and cost little
(include/trace/events/syscalls.h).
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kwhy.record.errno import MAX_ERRNO
from kwhy.record.formats import Format, columns, of_type
from kwhy.record.pages import I64, U64, Events

RT_SIGRETURN = 15  # x86-64; leaves with orig_ax = -1, the interrupted call's result in ax


@dataclass(slots=True)
class Windows:
    """Columns, one row per system call, in order of entry time.

    `exit_row` is -1 for calls still open at the end (exit, exit_group, killed, cut off), whose
    `ret` is 0 and `exit` the end of the recording; `enter_row` is -1 for those that began before
    (a child's return from fork among them), whose `enter` is 0, and for those that were `barred`:
    a seccomp filter answers before the entry is traced (syscall_trace_enter()), the exit is traced
    all the same. Their `enter` is the end of the task's call before.
    """

    tid: npt.NDArray[np.int32]
    nr: I64
    ret: I64
    enter: U64
    exit: U64
    enter_row: I64
    exit_row: I64
    barred: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tid)

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """Entry and exit both seen."""
        return (self.enter_row >= 0) & (self.exit_row >= 0)

    @property
    def failed(self) -> npt.NDArray[np.bool_]:
        """Complete or barred calls whose result is an error number."""
        error = (self.ret >= -MAX_ERRNO) & (self.ret < 0) & (self.nr != RT_SIGRETURN)
        return np.asarray(error & (self.complete | self.barred), np.bool_)


def pair(events: Events, enter: Format, leave: Format) -> Windows:
    """All system calls of the recording."""
    rows_in, rows_out = of_type(events, enter), of_type(events, leave)
    into = columns(events, enter, rows_in, ["id"])
    out = columns(events, leave, rows_out, ["id", "ret"])
    rows = np.concatenate([rows_in, rows_out])
    is_exit = np.zeros(len(rows), np.bool_)
    is_exit[len(rows_in) :] = True
    nr = np.concatenate([into["id"], out["id"]]).astype(np.int64)
    ret = np.concatenate([np.zeros(len(rows_in), np.int64), out["ret"].astype(np.int64)])
    time, tid = events.time[rows], events.tid[rows]
    # One task at a time, in order of time; equal times keep their order on the CPU.
    order = np.lexsort((rows, time, tid))
    rows, is_exit, nr, ret, time, tid = (
        rows[order], is_exit[order], nr[order], ret[order], time[order], tid[order]
    )  # fmt: skip

    follows = np.zeros(len(rows), np.bool_)  # row i + 1 is the exit of the entry in row i
    if len(rows) > 1:
        same = (tid[:-1] == tid[1:]) & ~is_exit[:-1] & is_exit[1:]
        follows[:-1] = same & ((nr[:-1] == nr[1:]) | (nr[:-1] == RT_SIGRETURN))
    paired_exit = np.zeros(len(rows), np.bool_)
    paired_exit[1:] = follows[:-1]
    entries = np.flatnonzero(~is_exit)
    orphans = np.flatnonzero(is_exit & ~paired_exit)
    done = follows[entries]
    after = np.zeros(len(rows), np.bool_)  # row i - 1 is the end of the same task's call before
    after[1:] = (tid[:-1] == tid[1:]) & is_exit[:-1]
    barred = after[orphans] & (nr[orphans] >= 0)
    since = np.where(barred, time[np.maximum(orphans, 1) - 1], np.uint64(0))
    partner = np.where(done, entries + 1, entries)
    last = events.time.max() if len(events) else np.uint64(0)
    made = Windows(
        tid=np.concatenate([tid[entries], tid[orphans]]),
        nr=np.concatenate([nr[entries], nr[orphans]]),
        ret=np.concatenate([np.where(done, ret[partner], 0), ret[orphans]]),
        enter=np.concatenate([time[entries], since]),
        exit=np.concatenate([np.where(done, time[partner], last), time[orphans]]),
        enter_row=np.concatenate([rows[entries], np.full(len(orphans), -1, np.int64)]),
        exit_row=np.concatenate([np.where(done, rows[partner], -1), rows[orphans]]),
        barred=np.concatenate([np.zeros(len(entries), np.bool_), barred]),
    )
    key = np.where(made.enter_row >= 0, made.enter, made.exit)
    final = np.argsort(key, kind="stable")
    return Windows(
        made.tid[final], made.nr[final], made.ret[final], made.enter[final], made.exit[final],
        made.enter_row[final], made.exit_row[final], made.barred[final],
    )  # fmt: skip


class Timeline:
    """Finds the events of one task between two moments without sorting the whole recording."""

    def __init__(self, events: Events) -> None:
        self.events = events
        cuts = np.flatnonzero(np.diff(events.cpu)) + 1 if len(events) else np.zeros(0, np.int64)
        bounds = [0, *cuts.tolist(), len(events)]
        self._parts: list[tuple[int, int, U64]] = []
        for start, end in itertools.pairwise(bounds):
            if start < end:
                # Time on one CPU never runs backwards in an honest recording; a damaged one
                # must not make the search lie.
                steady = np.maximum.accumulate(events.time[start:end])
                self._parts.append((start, end, steady))

    def rows(self, tid: int, begin: int, end: int) -> I64:
        """Rows of `tid` with begin <= time <= end, by time; equal times in CPU order."""
        found: list[I64] = []
        for start, _, times in self._parts:
            low = int(np.searchsorted(times, np.uint64(begin), "left"))
            high = int(np.searchsorted(times, np.uint64(end), "right"))
            part = np.flatnonzero(self.events.tid[start + low : start + high] == tid)
            if len(part):
                found.append(part + (start + low))
        if not found:
            return np.zeros(0, np.int64)
        rows = np.concatenate(found)
        if len(found) > 1:
            rows = rows[np.argsort(self.events.time[rows], kind="stable")]
        return rows

    def previous_time(self, cpu: int, time: int) -> int:
        """Time of the last event on `cpu` before `time`; 0 when there is none."""
        for start, _, times in self._parts:
            if int(self.events.cpu[start]) == cpu:
                before = int(np.searchsorted(times, np.uint64(time), "left"))
                return int(times[before - 1]) if before else 0
        return 0
