"""Keeping a command at its exit, its memory and files still there, for as long as somebody looks.

A small process traces the command's first task with PTRACE_SEIZE and asks for one event alone: the
stop in do_exit() before anything is given up (PTRACE_EVENT_EXIT, ptrace(2)). Signals are handed on,
children are left alone. When the process dies, or the agent does, the kernel lets the command go.
"""

import ctypes
import os
import select
import signal
import time
from typing import Optional

from . import tree
from .watchdog import close_all

# include/uapi/linux/ptrace.h
PTRACE_CONT = 7
PTRACE_DETACH = 17
PTRACE_GETEVENTMSG = 0x4201
PTRACE_SEIZE = 0x4206
PTRACE_LISTEN = 0x4208
PTRACE_O_TRACEEXIT = 1 << 6
PTRACE_EVENT_EXIT = 6
PTRACE_EVENT_STOP = 128
WALL = 0x40000000
STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

ATTACH_PATIENCE = 5.0
LEAVING = 0.5  # s that the threads of an ending process may take


class Holder(object):
    """A traced command. ``status``: the wait status that it will end with, once it is held."""

    def __init__(self, process: int, news: int, leash: int) -> None:
        self._process = process
        self._news = news
        self._leash = leash
        self.status: Optional[int] = None

    def held(self) -> bool:
        """Whether the command has come to its exit and is kept there."""
        if self.status is None and self._news >= 0 and _readable(self._news, 0):
            word = os.read(self._news, 16)
            self.status = int(word) if word.isdigit() else None
        return self.status is not None and self._news >= 0

    def release(self) -> None:
        """Let it go; it need not stand."""
        if self._leash < 0:
            return
        os.close(self._leash)  # its end is the word to go
        os.close(self._news)
        self._leash = self._news = -1
        try:
            os.waitpid(self._process, 0)
        except OSError:
            pass


def hold(pid: int, seconds: float) -> Optional[Holder]:
    """Trace ``pid``, our child, so that it stops at its exit, at most ``seconds`` long.

    None when it may not be traced.
    """
    news, tell = os.pipe()
    stay, leash = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            # A Ctrl-C is for the agent: it then lets go.
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            close_all({2, tell, stay})
            _follow(pid, tell, stay, seconds)
        finally:
            os._exit(0)
    os.close(tell)
    os.close(stay)
    holder = Holder(process, news, leash)
    if not _readable(news, ATTACH_PATIENCE) or os.read(news, 1) != b"a":
        holder.release()
        return None
    return holder


def _follow(pid: int, tell: int, stay: int, seconds: float) -> None:
    """In the tracing process: until the command has left, or the agent lets go."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACEEXIT) != 0:
        return
    os.write(tell, b"a")
    signal.signal(signal.SIGCHLD, lambda *_: None)
    wake, waker = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    poll.register(stay, select.POLLIN)
    while True:
        found, status = os.waitpid(pid, WALL | os.WNOHANG)
        if not found:
            for fd, _ in poll.poll(1000):
                if fd == stay:
                    return  # our end lets the command go on
                os.read(wake, 512)
            continue
        if not os.WIFSTOPPED(status):
            return
        number, event = os.WSTOPSIG(status), status >> 16
        if event == PTRACE_EVENT_EXIT:
            if not _alone(pid):  # a first thread that leaves the others is not yet the end
                return
            message = ctypes.c_ulong()
            libc.ptrace(PTRACE_GETEVENTMSG, pid, 0, ctypes.addressof(message))
            os.write(tell, b"%d" % message.value)
            _readable(stay, seconds)
            libc.ptrace(PTRACE_DETACH, pid, 0, 0)
            return
        if event == PTRACE_EVENT_STOP and number in STOPPING:
            libc.ptrace(PTRACE_LISTEN, pid, 0, 0)  # stopped it is, and stays, until SIGCONT
        else:
            libc.ptrace(PTRACE_CONT, pid, 0, 0 if event else number)


def _alone(pid: int) -> bool:
    """Whether a task's threads are gone, or go now."""
    end = time.monotonic() + LEAVING
    while len(tree.threads(pid)) > 1:
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def _readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    end = time.monotonic() + seconds
    while True:
        if poll.poll(max(0, int((end - time.monotonic()) * 1000))):
            return True
        if time.monotonic() >= end:
            return False
