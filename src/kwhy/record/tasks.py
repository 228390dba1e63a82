"""Tasks of a recording: names, parents, processes, ends.

From sched_process_fork/exec/exit, task_newtask and task_rename and signal_deliver (those that were
recorded), the exit system calls, and what the agent noticed in /proc while tasks lived.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kwhy.record.formats import Format, columns, dynamic_bytes, of_type
from kwhy.record.model import TaskInfo
from kwhy.record.pages import Events

CLONE_THREAD = 0x00010000  # include/uapi/linux/sched.h
RENAME_LENGTH = 15  # TASK_COMM_LEN - 1


def _text(events: Events, fmt: Format, row: int, name: str) -> str:
    if name not in fmt.fields:
        return ""
    return dynamic_bytes(events, fmt, row, name).decode("utf-8", "replace")


def find_tasks(
    events: Events, formats: Mapping[str, Format], listing: Iterable[Any] = ()
) -> dict[int, TaskInfo]:
    """All tasks by tid. `listing`: the agent's {"tid", "tgid", "comm", "ppid"} rows."""
    tasks: dict[int, TaskInfo] = {}
    sure: set[int] = set()  # tasks whose process is known, not assumed
    for row in listing:
        if isinstance(row, dict) and isinstance(row.get("tid"), int):
            tid = row["tid"]
            pid = row.get("tgid")
            comm = str(row.get("was") or row.get("comm") or "")
            parent = row.get("ppid")
            tasks[tid] = TaskInfo(
                tid,
                pid if isinstance(pid, int) else tid,
                comm,
                parent if isinstance(parent, int) else None,
            )
            if isinstance(pid, int):
                sure.add(tid)

    def task(tid: int) -> TaskInfo:
        return tasks.setdefault(tid, TaskInfo(tid, tid, ""))

    for tid in np.unique(events.tid).tolist():
        task(tid)
    # One pass in order of time over all the events that say something about tasks.
    order: list[tuple[int, int, str]] = []
    for name in _HANDLERS:
        fmt = formats.get(name)
        if fmt is not None:
            order += [(int(events.time[r]), int(r), name) for r in of_type(events, fmt)]
    for time, row, name in sorted(order):
        fmt = formats[name]
        values = _Values(events, fmt, row)
        _HANDLERS[name](task, values, time, int(events.tid[row]), sure)
    return tasks


class _Values:
    """Fields of one event by name, 0 or "" when that kernel does not have them."""

    def __init__(self, events: Events, fmt: Format, row: int) -> None:
        self._events, self._fmt, self._row = events, fmt, row

    def number(self, name: str) -> int:
        if name not in self._fmt.fields:
            return 0
        rows = np.array([self._row])
        return int(columns(self._events, self._fmt, rows, [name])[name][0])

    def text(self, name: str) -> str:
        return _text(self._events, self._fmt, self._row, name)


def _fork(task: Any, v: _Values, time: int, tid: int, sure: set[int]) -> None:
    child = task(v.number("child_pid"))
    child.parent, child.start = v.number("parent_pid") or tid, time
    child.comm = v.text("child_comm") or child.comm
    parent = task(tid)
    parent.comm = parent.comm or v.text("parent_comm")


def _newtask(task: Any, v: _Values, time: int, tid: int, sure: set[int]) -> None:
    child = task(v.number("pid"))
    child.comm = v.text("comm") or child.comm
    if v.number("clone_flags") & CLONE_THREAD:
        child.pid = task(tid).pid
    sure.add(child.tid)


def _exec(task: Any, v: _Values, time: int, tid: int, sure: set[int]) -> None:
    one = task(tid)
    name = v.text("filename").rpartition("/")[2][:RENAME_LENGTH]
    if name:
        one.names.append((time, name))
    old = v.number("old_pid")
    if old and old != tid and one.start is None:
        one.parent = task(old).parent


def _rename(task: Any, v: _Values, time: int, tid: int, sure: set[int]) -> None:
    one = task(v.number("pid") or tid)
    one.comm = one.comm or v.text("oldcomm")
    one.names.append((time, v.text("newcomm")))


def _exit(task: Any, v: _Values, time: int, tid: int, sure: set[int]) -> None:
    one = task(tid)
    one.end = time
    name = v.text("comm")
    if name and not one.comm and not one.names:
        one.comm = name


def _signal(task: Any, v: _Values, time: int, tid: int, sure: set[int]) -> None:
    task(tid).signal = v.number("sig") or None


_HANDLERS = {
    "sched_process_fork": _fork,
    "task_newtask": _newtask,
    "sched_process_exec": _exec,
    "task_rename": _rename,
    "sched_process_exit": _exit,
    "signal_deliver": _signal,
}
