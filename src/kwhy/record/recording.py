"""One recording, read: which system calls failed, and everything about the chosen ones."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from kwhy.arch.x86_64_syscalls import SYSCALLS
from kwhy.errors import InputError
from kwhy.record.calls import build_tree
from kwhy.record.errno import errno_name
from kwhy.record.formats import (
    Format,
    columns,
    dynamic_bytes,
    of_type,
    parse_format,
    u64_column,
)
from kwhy.record.graph import graph_tree
from kwhy.record.model import Call, CodeHints, ProbeHit, SymbolsLike, SyscallRecord, TaskInfo
from kwhy.record.names import Functions
from kwhy.record.pages import I64, Events, Gap, decode_pages, page_layout
from kwhy.record.tasks import find_tasks
from kwhy.record.windows import Timeline, Windows, pair

EXIT, EXIT_GROUP = 60, 231  # x86-64

# TRACE_FN is 1 on every kernel (enum trace_type, kernel/trace/trace.h) and its two words have had
# the same place since 2009 (struct ftrace_entry, kernel/trace/trace_entries.h): good enough when
# the recording does not bring the format file.
_FUNCTION_FORMAT = """name: function
ID: 1
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;
	field:unsigned long ip;	offset:8;	size:8;	signed:0;
	field:unsigned long parent_ip;	offset:16;	size:8;	signed:0;
"""

_WANTED = (
    "raw_syscalls/sys_enter",
    "raw_syscalls/sys_exit",
    "sched/sched_process_fork",
    "sched/sched_process_exec",
    "sched/sched_process_exit",
    "task/task_newtask",
    "task/task_rename",
    "signal/signal_deliver",
    "ftrace/function",
    "ftrace/funcgraph_entry",
    "ftrace/funcgraph_exit",
    "ftrace/funcgraph_retaddr_entry",
)


class RoundLike(Protocol):
    """What is read of a `kwhy.case.Round`."""

    @property
    def pages(self) -> Mapping[int, bytes]: ...
    @property
    def lost(self) -> Mapping[int, int]: ...
    @property
    def formats(self) -> Sequence[str]: ...
    @property
    def tasks(self) -> Sequence[Any]: ...
    @property
    def status(self) -> int | None: ...
    @property
    def tails(self) -> Mapping[str, str]: ...
    @property
    def extra(self) -> Mapping[str, Any]: ...


@dataclass(slots=True)
class _ProbeType:
    format: Format
    names: list[str]  # fields that hold fetched values


@dataclass
class Recording:
    """A decoded recording. Windows (system calls) are named by their index throughout.

    `notes` are sentences for the evidence (damage, loss, doubts). Trees are built only by
    `syscall`, one window at a time.
    """

    events: Events
    formats: dict[str, Format]
    windows: Windows
    tasks: dict[int, TaskInfo]
    functions: Functions
    hints: CodeHints | None = None
    probes: dict[str, Format] = field(default_factory=dict)
    lost: int = 0
    status: int | None = None
    pid: int | None = None  # the command's own process, or the one followed
    tails: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    prefetch: Callable[[list[tuple[int, int]]], None] | None = None

    # -- all windows, cheaply ---------------------------------------------------------------------

    @cached_property
    def failing(self) -> I64:
        """Indices of the failed system calls, in order of entry."""
        return np.flatnonzero(self.windows.failed)

    @cached_property
    def counts(self) -> Counter[tuple[str, str]]:
        """How often each (system call, errno name) failed."""
        rows = self.failing
        keys = zip(self.windows.nr[rows].tolist(), self.windows.ret[rows].tolist(), strict=True)
        return Counter(
            {
                (syscall_name(nr), errno_name(ret) or str(ret)): count
                for (nr, ret), count in Counter(keys).items()
            }
        )

    def name(self, index: int) -> str:
        """The system call's name, by its number."""
        return syscall_name(int(self.windows.nr[index]))

    def args(self, index: int) -> tuple[int, ...]:
        """Its six arguments as unsigned 64-bit numbers; () when the entry was not seen."""
        row = int(self.windows.enter_row[index])
        if row < 0:
            return ()
        fmt = self.formats["sys_enter"]
        values = columns(self.events, fmt, np.array([row]), ["args"])["args"][0]
        return tuple(int(v) for v in np.atleast_1d(values).astype(np.uint64))

    def args_of(self, indices: I64) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Arguments of many windows at once, shape (n, 6); rows without entry are 0."""
        rows = self.windows.enter_row[indices]
        out = np.zeros((len(indices), 6), np.uint64)
        seen = np.flatnonzero(rows >= 0)
        if len(seen):
            values = columns(self.events, self.formats["sys_enter"], rows[seen], ["args"])["args"]
            out[seen, : values.shape[1]] = values
        return out

    # -- one window -------------------------------------------------------------------------------

    @cached_property
    def _timeline(self) -> Timeline:
        return Timeline(self.events)

    @cached_property
    def _callers(self) -> frozenset[int]:
        """Functions seen calling others anywhere."""
        fmt = self.formats["function"]
        sites = np.unique(u64_column(self.events, fmt, of_type(self.events, fmt), "parent_ip"))
        return frozenset(self.functions.caller(int(site)).start for site in sites)

    def rows_of(self, index: int) -> I64:
        """Rows of all events of the task inside the window, in order of time."""
        w = self.windows
        rows = self._timeline.rows(int(w.tid[index]), int(w.enter[index]), int(w.exit[index]))
        # Stamps may be equal at the edges: on the edge's own CPU the row decides.
        for edge, keep_after in ((int(w.enter_row[index]), True), (int(w.exit_row[index]), False)):
            if edge >= 0:
                same = self.events.cpu[rows] == self.events.cpu[edge]
                out = same & ((rows <= edge) if keep_after else (rows >= edge))
                rows = rows[~out]
        return rows

    def syscall(self, index: int) -> SyscallRecord:
        """Everything about one window, its call tree included."""
        w = self.windows
        tid, nr = int(w.tid[index]), int(w.nr[index])
        begin, end = int(w.enter[index]), int(w.exit[index])
        task = self.tasks.get(tid) or TaskInfo(tid, tid, "")
        rows = self.rows_of(index)
        record = SyscallRecord(
            pid=task.pid,
            tid=tid,
            comm=task.comm_at(begin or end),
            nr=nr,
            name=self.name(index),
            args=self.args(index),
            ret=int(w.ret[index]),
            enter=begin,
            exit=end,
            calls=[],
            lost=self._lost_between(begin, end),
            probes=self._hits(rows),
            index=index,
            barred=bool(w.barred[index]),
        )
        self._trees(record, rows)
        for call in record.walk():
            entry = self.functions.at(call.function).syscall
            if entry is not None:
                record.entry = call
                # The number means something else to 32-bit programs; the function is certain.
                record.compat = entry[1]
                if entry[1] or nr not in SYSCALLS:
                    record.name = entry[0]
                break
        return record

    def _trees(self, record: SyscallRecord, rows: I64) -> None:
        events, types = self.events, self.events.type[rows]
        fmt = self.formats["function"]
        mine = rows[(types == fmt.id) & (events.size[rows] >= fmt.size)]
        if len(mine):
            ips = u64_column(events, fmt, mine, "ip").tolist()
            parents = u64_column(events, fmt, mine, "parent_ip").tolist()
            self._fetch(ips, parents)
            stream = zip(
                ips, parents, events.time[mine].tolist(), events.flags[mine].tolist(), strict=True
            )
            callers = None if self.hints is not None else self._callers
            tree = build_tree(stream, self.functions, self.hints, callers)
        else:
            tree = graph_tree(events, self.formats, rows, self.functions)
        record.calls, record.interrupts = tree.calls, tree.interrupts
        record.notes += tree.notes

    def _fetch(self, ips: list[int], parents: list[int]) -> None:
        """Have the code of every function involved fetched in one exchange."""
        if self.prefetch is None:
            return
        ranges = {}
        for address in {*ips, *(p - 1 for p in parents)}:
            function = self.functions.at(address)
            if function.size:
                ranges[function.start] = function.size
        self.prefetch(sorted(ranges.items()))

    def _lost_between(self, begin: int, end: int) -> bool:
        return any(
            gap.time >= begin and self._timeline.previous_time(gap.cpu, gap.time) <= end
            for gap in self.events.gaps
        )

    # -- probes -----------------------------------------------------------------------------------

    @cached_property
    def _probe_ids(self) -> dict[int, str]:
        return {fmt.id: name for name, fmt in self.probes.items()}

    def _hits(self, rows: I64) -> list[ProbeHit]:
        if not self.probes:
            return []
        ids = np.array(list(self._probe_ids), np.uint16)
        return [self._hit(int(r)) for r in rows[np.isin(self.events.type[rows], ids)]]

    def hits(self, name: str | None = None) -> list[ProbeHit]:
        """All hits of our dynamic probes, or of the one with this name, in order of time."""
        found: list[int] = []
        for probe, fmt in self.probes.items():
            if name in (None, probe):
                found += of_type(self.events, fmt).tolist()
        return [self._hit(r) for r in sorted(found, key=lambda r: int(self.events.time[r]))]

    def _hit(self, row: int) -> ProbeHit:
        name = self._probe_ids[int(self.events.type[row])]
        fmt = self.probes[name]
        values: dict[str, int | str] = {}
        ip = None
        small = int(self.events.size[row]) < fmt.size
        got = None if small else columns(self.events, fmt, np.array([row]))
        for f in fmt.fields.values():
            if f.name.startswith("common_") or not f.size or got is None:
                continue
            if f.dynamic or f.text:
                raw = dynamic_bytes(self.events, fmt, row, f.name)
                values[f.name] = raw.decode("utf-8", "replace")
            elif f.count == 1:
                number = int(got[f.name][0])
                if f.name in ("__probe_ip", "__probe_func"):
                    ip = number
                elif f.name != "__probe_ret_ip":
                    values[f.name] = number
        return ProbeHit(name, int(self.events.time[row]), int(self.events.tid[row]), ip, values)


def syscall_name(nr: int) -> str:
    """The name of a system call of x86-64 by number ("syscall_999" for unknown ones)."""
    x32 = 0x40000000  # __X32_SYSCALL_BIT, arch/x86/include/uapi/asm/unistd.h
    return SYSCALLS.get(nr) or SYSCALLS.get(nr & ~x32 if nr > 0 else nr) or f"syscall_{nr}"


def read_recording(
    round_: RoundLike,
    blob: Callable[[str], bytes | None],
    symbols: SymbolsLike,
    hints: CodeHints | None = None,
    prefetch: Callable[[list[tuple[int, int]]], None] | None = None,
) -> Recording:
    """Decode a round. `blob` gives the texts by name (``Evidence.blob``); `symbols` names code.

    `hints` answers questions about the live code (``kwhy.flow.cfg.Code`` does) and makes the call
    trees exact where functions are untraced or tail calls are made; `prefetch` is told which code
    that will need. Raises InputError when the recording cannot be understood at all; damage in
    the pages is noted in `Recording.notes`.
    """
    formats: dict[str, Format] = {}
    probes: dict[str, Format] = {}
    names = [f"format/{name}" for name in _WANTED if f"format/{name}" not in round_.formats]
    for name in [*names, *round_.formats]:
        text = blob(name)
        if not text:
            continue
        fmt = parse_format(text)
        if name.startswith("format/round") or "/kwhy" in name:
            probes[name.rpartition("/")[2]] = fmt
        else:
            formats[fmt.name] = fmt
    formats.setdefault("function", parse_format(_FUNCTION_FORMAT))
    for needed in ("sys_enter", "sys_exit"):
        if needed not in formats:
            raise InputError(f"the recording has no format of raw_syscalls/{needed}")
    for needed, fields in (("sys_enter", ("id", "args")), ("sys_exit", ("id", "ret"))):
        if any(f not in formats[needed].fields for f in fields):
            raise InputError(f"the format of raw_syscalls/{needed} lacks {' or '.join(fields)}")
    events = decode_pages(round_.pages, page_layout(blob("header_page")))
    lost = sum(round_.lost.values())
    armed = round_.extra.get("armed")
    pid = armed.get("pid") if isinstance(armed, Mapping) else None
    recording = Recording(
        events=events,
        formats=formats,
        windows=pair(events, formats["sys_enter"], formats["sys_exit"]),
        tasks=find_tasks(events, formats, round_.tasks),
        functions=Functions(symbols),
        hints=hints,
        probes=probes,
        lost=lost,
        status=round_.status,
        pid=pid if isinstance(pid, int) else None,
        tails=dict(round_.tails),
        prefetch=prefetch,
    )
    _ends(recording)
    _remarks(recording)
    return recording


def _ends(recording: Recording) -> None:
    """Exit statuses: the argument of the exit call that never returned."""
    w = recording.windows
    still = (w.enter_row >= 0) & (w.exit_row < 0) & np.isin(w.nr, (EXIT, EXIT_GROUP))
    for index in np.flatnonzero(still).tolist():
        task = recording.tasks.get(int(w.tid[index]))
        args = recording.args(index)
        if task is not None and args:
            task.status = args[0] & 0xFF
            task.signal = None
            task.end = task.end or int(w.enter[index])


def _remarks(recording: Recording) -> None:
    events = recording.events
    if events.damaged or events.trailing:
        recording.notes.append(
            f"{events.damaged} trace pages are damaged"
            + (f" and {events.trailing} bytes at the end cut off" if events.trailing else "")
            + ": some events are missing"
        )
    lost = recording.lost or sum(gap.count or 1 for gap in events.gaps)
    if lost:
        recording.notes.append(f"the kernel dropped {lost} events: the buffer was too small")


__all__ = ["Call", "Gap", "Recording", "SyscallRecord", "read_recording", "syscall_name"]
