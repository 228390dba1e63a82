"""Following the tasks of a command to their exits, in a process of its own.

Every task is traced with PTRACE_SEIZE, and children and threads start out traced, so that none gets
away. What is asked for are stops at a task's birth, at execve and in do_exit() before anything is
given up (ptrace(2)). Signals and group stops are passed on. At its exit a task is let go at once,
unless its process ends with it and somebody should look. When this process dies, or the agent does,
the kernel lets all tasks go on.
"""

import ctypes
import errno
import json
import mmap
import os
import select
import signal
import struct
import time
from typing import Any, Dict, List, Optional, Set, Tuple

from . import tree, userpages

# include/uapi/linux/ptrace.h
PTRACE_CONT = 7
PTRACE_DETACH = 17
PTRACE_SETOPTIONS = 0x4200
PTRACE_GETEVENTMSG = 0x4201
PTRACE_SEIZE = 0x4206
PTRACE_LISTEN = 0x4208
PTRACE_EVENT_EXEC = 4
PTRACE_EVENT_EXIT = 6
PTRACE_EVENT_STOP = 128
ALONE = 1 << PTRACE_EVENT_EXEC | 1 << PTRACE_EVENT_EXIT
WITH_CHILDREN = ALONE | 1 << 1 | 1 << 2 | 1 << 3  # FORK, VFORK, CLONE
WALL = 0x40000000
EXIT = {"x86_64": 60, "aarch64": 93}.get(os.uname().machine)  # the system call of one thread
STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

LEAVING = 0.5  # s that the threads of an ending process may take
TICK = 0.05
BURST = 20.0
"""Seconds that tasks may be kept in all, beside as long as the command ran in between."""

FRAME = struct.Struct(">II")  # lengths of a JSON header and of the pages behind it

AGAIN = (-errno.EAGAIN, -errno.EINTR, -errno.ETIMEDOUT)
"""How threads that wait for each other fail all the time."""

# What an executable file mentions, and then its task is left to itself, or its children are: a task
# has one tracer, and the sanitizer of leaks traces its own process.
TRACES_ITSELF = (b"libasan.so", b"liblsan.so", b"LeakSanitizer")
TRACES_CHILDREN = [b"ptrace"]  # a static program may have the instructions alone
TRACES_CHILDREN += {"x86_64": [b"\xb8\x65\0\0\0\x0f\x05"]}.get(os.uname().machine, [])


class Wanted(object):
    """Which processes are worth a look: ``params`` has "seconds" that each may be kept at most and,
    when one failure is looked for, "nr" of the system call and "ret"."""

    def __init__(self, params: Optional[Dict[str, Any]]) -> None:
        self.others = params is not None
        found = params or {}
        self.seconds = float(found.get("seconds") or 0)
        self.number: Optional[int] = found.get("nr")
        self.result: Optional[int] = found.get("ret")

    def worth(self, status: int, failed: Optional[List[Tuple[int, int]]]) -> bool:
        """By how a process ends and what failed in it (number and result; None: not known)."""
        if not self.others:
            return False
        if failed is None or (self.number is None and self.result is None):
            return status != 0 and failed != []
        return any(
            self.number in (None, number) and self.result in (None, result)
            for number, result in failed
        )

    def worth_thread(self, failed: Optional[List[Tuple[int, int]]]) -> bool:
        """Of a thread that ends before its process; how is not known, so something must tell."""
        if self.number is None and self.result is None:
            failed = [(number, result) for number, result in failed or () if result not in AGAIN]
        return bool(failed) and self.worth(1, failed)


class Ptrace(object):
    """ptrace(2)."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._call = libc.ptrace
        self._call.argtypes = [ctypes.c_long] * 4
        self._call.restype = ctypes.c_long

    def __call__(self, request: int, tid: int, data: int = 0) -> bool:
        """Whether it was done; a task can be killed at any time."""
        return bool(self._call(request, tid, 0, data) == 0)

    def message(self, tid: int) -> int:
        """What an event says: at an exit the wait status, at an execve the former number."""
        found = ctypes.c_ulong()
        self(PTRACE_GETEVENTMSG, tid, ctypes.addressof(found))
        return found.value


class Kept(object):
    """Tasks of a process that stopped at their exits, until when they stay."""

    def __init__(self, process: int, tids: List[int], seconds: float) -> None:
        self.process = process
        self.tids = set(tids)
        self.since = time.monotonic()
        self.end = self.since + seconds


class Follower(object):
    """The tasks of a command, and what is known of them. ``pid``: its first process."""

    def __init__(self, pid: int, tell: int, stay: int, seconds: float, wanted: Wanted) -> None:
        self.pid = pid
        self.tell = tell
        self.stay = stay
        self.seconds = seconds
        self.wanted = wanted
        self.options = WITH_CHILDREN if wanted.others else 1 << PTRACE_EVENT_EXIT
        self.ptrace = Ptrace()
        self.user = userpages.open_pages()
        self.begun = time.monotonic()
        self.spent = 0.0  # s that tasks were kept
        self.process: Dict[int, int] = {}  # of each task
        self.born: Dict[int, int] = {}  # ns, of each process
        self.leaving: Dict[int, Kept] = {}  # of each process: others are on their way
        self.kept: Dict[int, Kept] = {}  # by the least of the tasks
        self.files: Dict[Tuple[int, ...], int] = {}  # what may be traced, by executable file
        self.unsaid = bytearray()
        self.heard = b""

    def run(self) -> None:
        """Until all tasks have left, or the agent lets go."""
        if not self.ptrace(PTRACE_SEIZE, self.pid, self.options):
            return
        self._begin(self.pid)
        self.unsaid += b"a"
        wake, waker = os.pipe()
        for fd in (wake, waker, self.tell):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker)
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(self.stay, select.POLLIN)
        while True:
            try:
                tid, status = os.waitpid(-1, WALL | os.WNOHANG)
            except OSError:
                return  # nobody is left
            if tid:
                self._take(tid, status)
                continue
            self._say()
            if self.unsaid:
                poll.register(self.tell, select.POLLOUT)
            for fd, _ in poll.poll(int(TICK * 1000)):
                if fd == wake:
                    os.read(wake, 512)
                elif fd == self.stay and not self._listen():
                    return  # our end lets all go on
            if self.unsaid:
                poll.unregister(self.tell)
            self._tick()

    # -- stops ----------------------------------------------------------------------------------

    def _take(self, tid: int, status: int) -> None:
        if not os.WIFSTOPPED(status):
            self._gone(tid)
            return
        number, event = os.WSTOPSIG(status), status >> 16
        if event == PTRACE_EVENT_EXIT:
            self._exit(tid)
        elif event == PTRACE_EVENT_STOP and number in STOPPING:
            self.ptrace(PTRACE_LISTEN, tid)  # stopped it is, and stays, until SIGCONT
        elif event == PTRACE_EVENT_STOP:
            self._begin(tid)
            self.ptrace(PTRACE_CONT, tid)
        elif event == PTRACE_EVENT_EXEC:
            self._exec(tid)
        else:
            self.ptrace(PTRACE_CONT, tid, 0 if event else number)

    def _begin(self, tid: int) -> None:
        if tid in self.process:
            return
        process = tree.process(tid)
        self.process[tid] = process
        if process == tid:
            self.born[tid] = int(time.monotonic() * 1e9)
            if self.user is not None:
                self.user.add(tid)

    def _gone(self, tid: int) -> None:
        """Killed where it stood."""
        if self.process.pop(tid, None) == tid:
            self._forget(tid)
        for group in (self.leaving, self.kept):
            for key, kept in list(group.items()):
                kept.tids.discard(tid)
                if not kept.tids:
                    del group[key]

    def _exec(self, tid: int) -> None:
        former = self.ptrace.message(tid)
        if former != tid:
            self.process.pop(former, None)
            self._begin(tid)
        options = self._allowed(tid)
        if not options:
            self._forget(tid)
            self._leave({tid})
            return
        if self.wanted.others:
            self.ptrace(PTRACE_SETOPTIONS, tid, options)
        self.ptrace(PTRACE_CONT, tid)

    def _allowed(self, tid: int) -> int:
        """The options for a task with the program that it executes now; 0: do not trace it."""
        try:
            with open("/proc/%d/exe" % tid, "rb") as file:
                facts = os.fstat(file.fileno())
                key = (facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size)
                if key not in self.files:
                    self.files[key] = _options(file.fileno())
                return self.files[key]
        except (OSError, ValueError):
            return WITH_CHILDREN

    def _exit(self, tid: int) -> None:
        process = self.process.get(tid) or tree.process(tid)
        leaving = self.leaving.get(process)
        if leaving is None:
            others = [other for other in tree.threads(process) if other != tid]
            if not all(tree.zombie(other) for other in others) and tree.syscall(tid) == EXIT:
                self._thread(process, tid)
                return
            leaving = self.leaving[process] = Kept(process, [], LEAVING)
        leaving.tids.add(tid)
        self._together(process, leaving)

    def _together(self, process: int, leaving: Kept) -> None:
        """Go on when the last thread of a process has come to its exit, or takes too long."""
        others = [
            tid for tid in tree.threads(process) if tid not in leaving.tids and not tree.zombie(tid)
        ]
        now = time.monotonic()
        if not others or now > leaving.end:
            del self.leaving[process]
            self._ended(process, leaving)
        elif now > leaving.since + TICK and not all(tree.killed(tid) for tid in others):
            # They make room for one that calls execve, or that writes their core.
            del self.leaving[process]
            self._leave(leaving.tids)

    def _thread(self, process: int, tid: int) -> None:
        """Keep a thread that leaves the others, or let it go."""
        if self.wanted.worth_thread(self._failed(process, tid)) and self._affordable():
            self._keep(Kept(process, [tid], self.wanted.seconds), tid)
        else:
            self._leave({tid})

    def _ended(self, process: int, at_exit: Kept) -> None:
        """Keep a process at its exit, or let it go."""
        status = self.ptrace.message(max(at_exit.tids))
        if process == self.pid:
            self._keep(Kept(process, list(at_exit.tids), self.seconds))
        elif self.wanted.worth(status, self._failed(process)) and self._affordable():
            self._keep(Kept(process, list(at_exit.tids), self.wanted.seconds))
        else:
            self._leave(at_exit.tids)
        self._forget(process)

    def _failed(self, process: int, tid: int = 0) -> Optional[List[Tuple[int, int]]]:
        """What failed in a process, or a thread of it; None when that is not to be known."""
        if self.user is None:
            return None
        self.user.sweep()
        return self.user.failed(process, tid)

    def _keep(self, kept: Kept, tid: int = 0) -> None:
        """``tid``: only this thread ends."""
        tids = sorted(kept.tids)
        self.kept[tids[0]] = kept
        found = self.user.collected(kept.process, tid) if self.user is not None else ([], b"")
        snapshots, data = found
        header = {
            "pid": kept.process, "tids": tids, "ends": not tid,
            "status": self.ptrace.message(tids[-1]), "born": self.born.get(kept.process, 0),
            "snapshots": snapshots,
        }  # fmt: skip
        text = json.dumps(header).encode("utf-8")
        self.unsaid += FRAME.pack(len(text), len(data)) + text + data
        self._say()

    def _affordable(self) -> bool:
        now = time.monotonic()
        spent = self.spent + sum(now - kept.since for kept in self.kept.values())
        return spent <= BURST + (now - self.begun - spent)

    def _leave(self, tids: Set[int]) -> None:
        for tid in tids:
            self.process.pop(tid, None)
            self.ptrace(PTRACE_DETACH, tid)

    def _forget(self, process: int) -> None:
        self.born.pop(process, None)
        if self.user is not None:
            self.user.remove(process)

    # -- between them ---------------------------------------------------------------------------

    def _tick(self) -> None:
        if self.user is not None:
            self.user.sweep()
        for process, leaving in list(self.leaving.items()):
            self._together(process, leaving)
        now = time.monotonic()
        for key, kept in list(self.kept.items()):
            if now > kept.end:
                self._let_go(key)

    def _let_go(self, key: int) -> None:
        kept = self.kept.pop(key, None)
        if kept is not None:
            self.spent += time.monotonic() - kept.since
            self._leave(kept.tids)

    def _say(self) -> None:
        """As much as the agent takes now."""
        try:
            while self.unsaid:
                del self.unsaid[: os.write(self.tell, self.unsaid[:65536])]
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self.unsaid.clear()

    def _listen(self) -> bool:
        data = os.read(self.stay, 512)
        *words, self.heard = (self.heard + data).split(b"\n")
        for word in words:
            self._let_go(int(word))
        return bool(data)


def _options(fd: int) -> int:
    """What may be asked of a task that executes this file."""
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as text:
        if any(text.find(word) >= 0 for word in TRACES_ITSELF):
            return 0
        return ALONE if any(text.find(word) >= 0 for word in TRACES_CHILDREN) else WITH_CHILDREN
