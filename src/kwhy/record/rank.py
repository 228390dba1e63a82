"""Which of the failed system calls explains how the program ended.

A process fails dozens of calls on purpose: the loader looks for libraries, stdio asks whether it
writes to a terminal, interpreters search their path. The call that mattered is usually the last
failure before the program complained (a write to file descriptor 2) or gave up (exit with a
status, death by a signal), and the complaint often names the error. Everything here is a guess
with its reasons told; the list is complete, so that a user can choose another.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kwhy.record.errno import ERRNO, errno_name
from kwhy.record.recording import EXIT_GROUP, Recording

# x86-64 numbers of the calls that tell what a program does.
_WRITE, _WRITEV, _SENDTO, _SENDMSG = 1, 20, 44, 46
_EXECVE, _EXECVEAT = 59, 322
_SET_TID_ADDRESS = 218
_LOOKUPS = frozenset(
    ("access", "faccessat", "faccessat2", "open", "openat", "openat2", "stat", "lstat",
     "newfstatat", "statx", "readlink", "readlinkat", "execve", "execveat")
)  # fmt: skip

# Failures that programs provoke as a matter of course, with how little they mean (0 to 60).
_ROUTINE: dict[tuple[str, str], tuple[int, str]] = {
    ("ioctl", "ENOTTY"): (45, "asking whether something is a terminal"),
    ("ioctl", "EINVAL"): (8, "an ioctl probe"),
    ("lseek", "ESPIPE"): (45, "asking whether something can seek"),
    ("pread64", "ESPIPE"): (30, "asking whether something can seek"),
    ("arch_prctl", "EINVAL"): (60, "the C library asking for CPU features"),
    ("rseq", "EINVAL"): (50, "the C library registering rseq"),
    ("rseq", "EBUSY"): (50, "the C library registering rseq"),
    ("set_robust_list", "ENOSYS"): (50, "the C library at start"),
    ("readlink", "EINVAL"): (35, "asking whether a path is a symbolic link"),
    ("readlinkat", "EINVAL"): (35, "asking whether a path is a symbolic link"),
    ("access", "ENOENT"): (18, "asking whether a file exists"),
    ("faccessat", "ENOENT"): (18, "asking whether a file exists"),
    ("faccessat2", "ENOENT"): (18, "asking whether a file exists"),
    ("newfstatat", "ENOENT"): (10, "asking whether a file exists"),
    ("stat", "ENOENT"): (10, "asking whether a file exists"),
    ("statx", "ENOENT"): (10, "asking whether a file exists"),
    ("lstat", "ENOENT"): (10, "asking whether a file exists"),
    ("readlink", "ENOENT"): (12, "asking whether a file exists"),
    ("openat", "ENOENT"): (4, "looking for a file"),
    ("open", "ENOENT"): (4, "looking for a file"),
    ("mkdir", "EEXIST"): (15, "making sure that a directory exists"),
    ("mkdirat", "EEXIST"): (15, "making sure that a directory exists"),
    ("unlink", "ENOENT"): (15, "making sure that a file is gone"),
    ("unlinkat", "ENOENT"): (15, "making sure that a file is gone"),
    ("wait4", "ECHILD"): (35, "waiting until there are no more children"),
    ("waitid", "ECHILD"): (35, "waiting until there are no more children"),
    ("getxattr", "ENODATA"): (35, "asking for an attribute"),
    ("lgetxattr", "ENODATA"): (35, "asking for an attribute"),
    ("fgetxattr", "ENODATA"): (35, "asking for an attribute"),
    ("getxattr", "EOPNOTSUPP"): (35, "asking for an attribute"),
    ("lgetxattr", "EOPNOTSUPP"): (35, "asking for an attribute"),
    ("fgetxattr", "EOPNOTSUPP"): (35, "asking for an attribute"),
    ("listxattr", "EOPNOTSUPP"): (35, "asking for attributes"),
    ("connect", "ENOENT"): (20, "looking for a local service such as nscd"),
    ("connect", "EINPROGRESS"): (50, "connecting without waiting"),
    ("futex", "EAGAIN"): (55, "a lock that changed meanwhile"),
    ("futex", "ETIMEDOUT"): (50, "waiting with a timeout"),
    ("rt_sigtimedwait", "EAGAIN"): (45, "waiting with a timeout"),
    ("close", "EBADF"): (15, "closing everything there might be"),
    ("fcntl", "EBADF"): (15, "asking whether a descriptor is open"),
    ("copy_file_range", "EXDEV"): (25, "trying the fast way first"),
    ("copy_file_range", "EINVAL"): (20, "trying the fast way first"),
    ("ioctl", "EOPNOTSUPP"): (25, "trying the fast way first"),
    ("clone3", "ENOSYS"): (40, "trying the newest call first"),
    ("statx", "ENOSYS"): (40, "trying the newest call first"),
    ("faccessat2", "ENOSYS"): (40, "trying the newest call first"),
    ("openat2", "ENOSYS"): (40, "trying the newest call first"),
    ("prctl", "EINVAL"): (12, "a prctl probe"),
    ("keyctl", "ENOSYS"): (25, "a probe"),
    ("mlock", "ENOMEM"): (5, "trying to lock memory"),
}
_RETRY = frozenset(
    ("EAGAIN", "EINTR", "EINPROGRESS", "EALREADY", "ERESTARTSYS", "ERESTARTNOINTR",
     "ERESTARTNOHAND", "ERESTART_RESTARTBLOCK")
)  # fmt: skip
_Add = Callable[[float, str], None]  # collects reasons with their points
_NEAR = 14  # calls between a failure and the complaint about it: perror() dups, stats, asks


@dataclass(frozen=True, slots=True)
class Ranked:
    """A failed call with its place in the list: `score` orders, `reason` says why.

    `count` is how often the task's process failed with the same call and error.
    """

    index: int
    score: float
    reason: str
    name: str
    errno: str
    tid: int
    time: int
    count: int


def rank(
    recording: Recording, *, syscall: str | None = None, errno: str | None = None
) -> list[Ranked]:
    """The failed calls, the one that explains the end first; equal ones latest first.

    `syscall` (a name) and `errno` (a name such as "EIO") leave only those.
    """
    rows = recording.failing
    if not len(rows):
        return []
    facts = _Facts(recording)
    ranked = []
    for index in rows.tolist():
        name = recording.name(index)
        error = errno_name(int(recording.windows.ret[index])) or "?"
        if syscall not in (None, name) or errno not in (None, error):
            continue
        ranked.append(_judge(facts, index, name, error))
    ranked.sort(key=lambda r: (-r.score, -r.time))
    return ranked


class _Facts:
    """Per recording and per process: complaints, ends, counts, what succeeded later."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        w = recording.windows
        self.args = recording.args_of(np.arange(len(w), dtype=np.int64))
        tasks = recording.tasks
        self.process = np.array(
            [tasks[t].pid if t in tasks else t for t in w.tid.tolist()], np.int64
        )
        self.counts: Counter[tuple[int, int, int]] = Counter()
        for index in recording.failing.tolist():
            self.counts[self.key(index)] += 1
        write = np.isin(w.nr, (_WRITE, _WRITEV, _SENDTO, _SENDMSG)) & (self.args[:, 0] == 2)
        self.complaints = np.flatnonzero(write & (w.enter_row >= 0))
        self.said = _errors_named(recording.tails.get("err", ""))
        self._named: dict[int, set[str]] = {}
        self.main = recording.pid
        executed = np.isin(w.nr, (_EXECVE, _EXECVEAT))
        self.executions = np.flatnonzero(executed & (w.ret == 0) & w.complete)
        self.loaded = np.flatnonzero((w.nr == _SET_TID_ADDRESS) & w.complete)
        self.by_tid: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
        order = np.argsort(w.tid, kind="stable")
        tids, starts = np.unique(w.tid[order], return_index=True)
        for tid, part in zip(tids.tolist(), np.split(order, starts[1:]), strict=True):
            self.by_tid[tid] = part

    def key(self, index: int) -> tuple[int, int, int]:
        """Process, system call and result."""
        w = self.recording.windows
        return int(self.process[index]), int(w.nr[index]), int(w.ret[index])

    def after(self, index: int, among: Iterable[int]) -> list[int]:
        """Those of `among` (ascending) that began later in the same process."""
        mine = self.process[index]
        return [i for i in among if i > index and self.process[i] == mine]

    def between(self, index: int, later: int) -> tuple[int, bool]:
        """(calls of the task between two of its windows, whether one of them failed)."""
        part = self.by_tid[int(self.recording.windows.tid[index])]
        low, high = np.searchsorted(part, [index, later])
        inner = part[low + 1 : high]
        rivals = [i for i in inner[self.recording.windows.failed[inner]].tolist() if self.rival(i)]
        return len(inner), bool(rivals)

    def rival(self, index: int) -> bool:
        """Whether this failure could be what the program complains about, or gives up for.

        Not those that programs provoke on purpose, nor, when the message names an error that the
        process met, those with another.
        """
        error = errno_name(int(self.recording.windows.ret[index])) or ""
        named = self.named(int(self.process[index]))
        if named:
            return error in named
        cost, _ = _ROUTINE.get((self.recording.name(index), error), (0, ""))
        return cost < 30 and error not in _RETRY

    def named(self, process: int) -> set[str]:
        """The errors that the message names and that the process met."""
        if process not in self._named:
            met = {errno_name(ret) for pid, _, ret in self.counts if pid == process}
            self._named[process] = {name for name in self.said if name in met}
        return self._named[process]


def _judge(facts: _Facts, index: int, name: str, error: str) -> Ranked:
    recording = facts.recording
    w = recording.windows
    tid = int(w.tid[index])
    reasons: list[tuple[float, str]] = []

    def add(points: float, why: str) -> None:
        reasons.append((points, why))

    _by_complaint(facts, index, error, add)
    _by_end(facts, index, add)
    _by_routine(facts, index, name, error, add)
    score = sum(points for points, _ in reasons)
    good = [why for points, why in sorted(reasons, key=lambda r: -r[0]) if points > 0]
    bad = [why for points, why in sorted(reasons, key=lambda r: r[0]) if points < 0]
    told = (good[:2] if score > 0 else []) or bad[:1] or ["failed"]
    return Ranked(
        index=index,
        score=round(score, 1),
        reason=", ".join(told),
        name=name,
        errno=error,
        tid=tid,
        time=int(w.enter[index]),
        count=facts.counts[facts.key(index)],
    )


def _by_complaint(facts: _Facts, index: int, error: str, add: _Add) -> None:
    """Did the task write to fd 2 soon after, or did the program name this error?"""
    later = [
        i
        for i in facts.complaints[facts.complaints > index].tolist()
        if facts.recording.windows.tid[i] == facts.recording.windows.tid[index]
    ]
    named = facts.named(int(facts.process[index]))
    if later and (not named or error in named):
        distance, worse = facts.between(index, later[0])
        if not worse and distance <= _NEAR:
            add(50 - 2 * distance, "the last failure before a message on standard error")
        elif not worse:
            add(15, "the last failure before a message on standard error, long before it")
    if error in facts.said:
        add(35, "the message on standard error names this error")
    elif facts.said:
        add(-10, "the message on standard error names another error")


def _by_end(facts: _Facts, index: int, add: _Add) -> None:
    """Was it the last thing that failed before the task ended badly?"""
    recording = facts.recording
    w = recording.windows
    task = recording.tasks.get(int(w.tid[index]))
    process = recording.tasks.get(int(facts.process[index]))
    part = facts.by_tid[int(w.tid[index])]
    status = task.status if task and task.status is not None else process and process.status
    signal = task.signal if task and task.end is not None else None
    last = int(part[-1])
    distance, worse = facts.between(index, last + 1 if last == index else last)
    if status or signal:
        end = f"exited with status {status}" if status else f"was killed by signal {signal}"
        add(10, f"its process {end}")
        if not worse:
            add(max(30 - distance, 8), f"the last failure before its process {end}")
    elif not worse and task is not None and task.end is not None:
        # A thread that ends itself, or a process that succeeded in spite of the failure.
        alone = int(w.nr[last]) != EXIT_GROUP
        add(12 if alone else 6, "the last failure of its task")
    if facts.main is not None and facts.process[index] == facts.main and status:
        add(3, "in the command's own process")


def _by_routine(facts: _Facts, index: int, name: str, error: str, add: _Add) -> None:
    """Is it the kind of failure that means nothing?"""
    w = facts.recording.windows
    cost, why = _ROUTINE.get((name, error), (0, ""))
    if cost:
        add(-cost, why)
    if error in _RETRY and not cost:
        add(-25, "the kind of failure that is tried again")
    same = facts.counts[facts.key(index)]
    if same > 3:
        add(-4 * float(np.log2(same)), f"it failed {same} times in the same way")
    part = facts.by_tid[int(w.tid[index])]
    later = part[(part > index) & (w.nr[part] == w.nr[index]) & w.complete[part]]
    won = later[(w.ret[later] >= 0) & (facts.args[later, 0] == facts.args[index, 0])]
    if name in ("execve", "execveat"):
        won = later[w.ret[later] == 0]
        if len(won):
            add(-60, "one of the places where the program was looked for")
    elif len(won) and (facts.args[won, 1] == facts.args[index, 1]).any():
        add(-15, "the same call succeeded later")
    _by_phase(facts, index, name, add)


def _by_phase(facts: _Facts, index: int, name: str, add: _Add) -> None:
    """Before the program ran at all, or while it was being loaded."""
    w = facts.recording.windows
    mine = facts.executions[w.tid[facts.executions] == w.tid[index]]
    before = mine[mine < index]
    task = facts.recording.tasks.get(int(w.tid[index]))
    is_main = facts.main is not None and int(w.tid[index]) == facts.main
    if is_main and not len(before) and len(mine):
        add(-80, "before the command was started")
        return
    if not len(before) or name not in _LOOKUPS:
        return
    # The loader, and every C library at its start, calls set_tid_address once.
    ready = facts.loaded[w.tid[facts.loaded] == w.tid[index]]
    ready = ready[ready > before[-1]]
    after = mine[mine > index]
    limit = int(after[0]) if len(after) else len(w)
    ready = ready[ready < limit]
    if len(ready) and index < int(ready[0]):
        add(-40, "the loader looking for libraries")
    elif not len(ready) and not (task and task.status == 127):
        add(-20, "the loader looking for libraries")


@lru_cache(maxsize=1)
def _wordings() -> list[tuple[str, str]]:
    """(what a program prints, errno name), longest first."""
    words = []
    for number, (name, text) in ERRNO.items():
        if number >= 512:
            continue
        words.append((os.strerror(number).lower(), name))
        words.append((text.lower(), name))
    unique = [(text, name) for text, name in dict(words).items() if len(text) > 7]
    return sorted(unique, key=lambda pair: -len(pair[0]))


def _errors_named(text: str) -> set[str]:
    """Names of the errors that a program's message mentions, by wording, name or number."""
    found = {name for name in re.findall(r"\bE[A-Z0-9]{2,15}\b", text) if name in _names()}
    for number in re.findall(r"(?:errno|\[Errno)[ =:]*-?(\d{1,3})\b", text, re.I):
        if int(number) in ERRNO:
            found.add(ERRNO[int(number)][0])
    rest = text.lower()
    for wording, name in _wordings():
        if wording in rest:
            found.add(name)
            rest = rest.replace(wording, " ")
    return found


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    return frozenset(name for name, _ in ERRNO.values())
