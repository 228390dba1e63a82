"""Keeping the processes of a command at their exits, memory and files still there, for as long as
somebody looks: the agent's end of the process that follows them (``exits``)."""

import json
import os
import select
import signal
import time
from typing import Any, Dict, List, NamedTuple, Optional

from . import exits
from .watchdog import close_all

ATTACH_PATIENCE = 5.0


class Leaving(NamedTuple):
    """A process kept at its exit, by the threads of it that are; ``ends``: or a thread alone, which
    leaves the others.

    ``status`` is the wait status that it will end with, ``born`` when the process was first seen
    (ns of CLOCK_MONOTONIC). ``snapshots`` are of its failing calls, with numbers of ``pages``.
    """

    pid: int
    tids: List[int]
    ends: bool
    status: int
    born: int
    snapshots: List[Any]
    pages: bytes


class Holder(object):
    """A command whose tasks are followed. ``first``: its first process, once it is kept."""

    def __init__(self, pid: int, process: int, news: int, leash: int) -> None:
        self.pid = pid
        self.first: Optional[Leaving] = None
        self.news = news
        """Readable when there is something to look at; -1 when there never will be again."""
        self._process = process
        self._leash = leash
        self._heard = b""

    def look(self) -> List[Leaving]:
        """Those that have come to their exits since."""
        while self.news >= 0 and _readable(self.news, 0):
            data = os.read(self.news, 1 << 16)
            if not data:
                os.close(self.news)
                self.news = -1
            self._heard += data
        found = []
        while len(self._heard) >= exits.FRAME.size:
            words, size = exits.FRAME.unpack_from(self._heard)
            text, end = exits.FRAME.size + words, exits.FRAME.size + words + size
            if len(self._heard) < end:
                break
            header = json.loads(self._heard[exits.FRAME.size : text].decode("utf-8"))
            found.append(Leaving(pages=self._heard[text:end], **header))
            self._heard = self._heard[end:]
            if found[-1].pid == self.pid and found[-1].ends:
                self.first = found[-1]
        return found

    def held(self) -> bool:
        """Whether the first process has come to its exit and is kept there."""
        return self.first is not None and self._leash >= 0

    def let_go(self, tid: int) -> None:
        """Those that are kept of which this is the first."""
        try:
            os.write(self._leash, b"%d\n" % tid)
        except OSError:  # nobody is followed any more
            pass

    def release(self) -> None:
        """Let all go; they need not stand."""
        if self._leash < 0:
            return
        os.close(self._leash)  # its end is the word to go
        if self.news >= 0:
            os.close(self.news)
        self._leash = self.news = -1
        try:
            os.waitpid(self._process, 0)
        except OSError:
            pass


def hold(pid: int, seconds: float, others: Optional[Dict[str, Any]] = None) -> Optional[Holder]:
    """Follow ``pid``, our child, so that it stops at its exit, at most ``seconds`` long.

    ``others``: those of its descendants too that are worth a look (``exits.Wanted``). None when it
    may not be traced.
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
            exits.Follower(pid, tell, stay, seconds, exits.Wanted(others)).run()
        finally:
            os._exit(0)
    os.close(tell)
    os.close(stay)
    holder = Holder(pid, process, news, leash)
    if not _readable(news, ATTACH_PATIENCE) or os.read(news, 1) != b"a":
        holder.release()
        return None
    return holder


def _readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    end = time.monotonic() + seconds
    while True:
        if poll.poll(max(0, int((end - time.monotonic()) * 1000))):
            return True
        if time.monotonic() >= end:
            return False
