"""The trace buffer to record into: a private instance, or the top-level one, borrowed.

Everything set in an instance goes away with it. At the top level every single change is journaled
with the value found before, and nothing is touched at all while somebody else uses it.
"""

import errno
import fcntl
import os
import threading
from typing import Any, Dict, List, Optional

from . import tracefs
from .errors import AgentError
from .journal import Entry, Journal
from .probe import users

_serial_lock = threading.Lock()
_serial = 0
_borrowed = threading.Lock()


def _next_serial() -> int:
    global _serial
    with _serial_lock:
        _serial += 1
        return _serial


class Buffer(object):
    """A buffer of ours at ``path``; ``group`` is the name for our dynamic events."""

    def __init__(self, base: str, journal: Journal, own: bool) -> None:
        self.base = base
        self.journal = journal
        self.own = own
        self.entries: List[Entry] = []
        self._lock_fd = -1
        number = _next_serial()
        self.group = "kwhy_%d_%d" % (os.getpid(), number)
        self.path = "%s/instances/kwhy-%d-%d" % (base, os.getpid(), number) if own else base
        self.open = False

    # -- taking and giving back -----------------------------------------------------------------

    def take(self) -> None:
        """Make the instance, or borrow the top level. Raises AgentError(feature)."""
        if self.own:
            self._make_instance()
        else:
            self._borrow()
        self.open = True

    def _make_instance(self) -> None:
        size = self.base + "/buffer_size_kb"
        self.note("expand", path=size, value=tracefs.read_or(size))
        self.note("instance", path=self.path)
        try:
            os.mkdir(self.path)
        except OSError as error:
            raise AgentError(
                "feature", "cannot make a trace instance: %s" % error.strerror, "instances"
            )
        for option in ("stacktrace", "userstacktrace"):  # an instance inherits the top level's
            if tracefs.read_or(self.path + "/options/" + option) == "1":
                tracefs.write(self.path + "/options/" + option, "0")
        tracefs.write(self.path + "/tracing_on", "0")

    def _borrow(self) -> None:
        if not _borrowed.acquire(False):
            raise AgentError("feature", "this agent already uses the tracer", "tracer-busy")
        self.open = True
        self._lock_fd = os.open(
            tracefs.run_dir() + "/top-level.lock", os.O_RDWR | os.O_CREAT, 0o600
        )
        try:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AgentError(
                "feature", "another kwhy uses the tracer on this target: try later", "tracer-busy"
            )
        busy = users(self.base) + contents(self.base)
        if busy:
            raise AgentError(
                "feature",
                "somebody else is tracing on this target (%s), and this kernel has only one "
                "buffer for what is asked: try again when they are done" % "; ".join(busy),
                "tracer-busy",
            )
        self.note("clear", path=self.base + "/trace")
        self.set("tracing_on", "0")

    def note(self, do: str, **fields: Any) -> Entry:
        """Journal how to undo the next change, as part of this buffer."""
        entry = self.journal.add(do, **fields)
        self.entries.append(entry)
        return entry

    def give_back(self) -> List[str]:
        """Undo everything, last first; returns what could not be undone."""
        problems = []
        while self.entries:
            entry = self.entries.pop()
            try:
                self.journal.undo(entry)
            except OSError as error:
                problems.append("%s: %s" % (entry.get("path"), error.strerror))
        if not self.own and self.open:
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1
            _borrowed.release()
        self.open = False
        return problems

    # -- settings -------------------------------------------------------------------------------

    def set(self, name: str, value: str) -> None:
        """Set a file that holds one value. Raises OSError."""
        path = self.path + "/" + name
        if not self.own:
            before = tracefs.selected(tracefs.read(path))
            if name == "buffer_size_kb" and "expanded:" in before:
                before = before.split("expanded:")[1].strip(" )")
            self.note("write", path=path, value=before)
        tracefs.write(path, value)

    def set_list(self, name: str, words: List[str]) -> List[str]:
        """Set a list that was empty before; returns the words that the kernel refused."""
        path = self.path + "/" + name
        if not self.own:
            self.note("clear", path=path)
        return write_list(path, words)

    def enable(self, event: str, condition: Optional[str] = None) -> None:
        """Enable an event ("system/name" or "system"), with a filter. Raises OSError."""
        path = "%s/events/%s" % (self.path, event)
        if not self.own:
            self.note("write", path=path + "/enable", value="0")
            if condition:
                self.note("write", path=path + "/filter", value="0")
        if condition:
            tracefs.write(path + "/filter", condition)
        tracefs.write(path + "/enable", "1")

    def live_tids(self) -> List[int]:
        """Thread ids that the kernel filters for now: forks add, exits remove (event-fork)."""
        text = tracefs.read_or(self.path + "/set_event_pid")
        return [int(word) for word in text.split() if word.isdigit()]


def write_list(path: str, words: List[str]) -> List[str]:
    """Add words to a list-like file; returns the refused ones.

    ftrace_regex_write() takes one word per call and says how many bytes that was; a refused word
    is skipped. The pid files take all at once.
    """
    refused = []
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        data = (" ".join(words) + "\n").encode("utf-8") if words else b""
        while data.strip():
            try:
                done = os.write(fd, data[:32768])
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ESRCH):
                    raise
                word = data.split(None, 1)[0]
                refused.append(word.decode("utf-8"))
                done = data.index(word) + len(word) + 1
            if done <= 0:
                break
            data = data[done:]
    finally:
        os.close(fd)
    return refused


def contents(base: str) -> List[str]:
    """Whether the top-level buffer holds somebody's recording, which we would wipe."""
    total = 0
    try:
        names = os.listdir(base + "/per_cpu")
    except OSError:
        return []
    for name in names:
        for line in tracefs.read_or("%s/per_cpu/%s/stats" % (base, name)).splitlines():
            if line.startswith("entries:"):
                total += int(line.split()[1])
    if total:
        return ["the buffer holds %d events; to drop them: echo > %s/trace" % (total, base)]
    return []


def choose(base: str, journal: Journal, features: Dict[str, Any], tracer: str) -> Buffer:
    """An instance where the kernel can do ``tracer`` in one, else the top level.

    Raises AgentError(feature) when the kernel lacks the tracer altogether.
    """
    if features.get("lockdown") == "confidentiality":
        raise AgentError(
            "feature",
            "the kernel is locked down (confidentiality): it refuses tracing even to root; "
            "boot with lockdown=none",
            "lockdown",
        )
    names = {"function": "function_tracer", "function_graph": "function_graph", "nop": "tracefs"}
    if tracer not in names:
        raise AgentError("usage", "tracer is one of %s" % ", ".join(sorted(names)))
    if not features.get(names[tracer]):
        raise AgentError("feature", "the kernel has no %s tracer" % tracer, names[tracer])
    able = {"function": "function_in_instance", "function_graph": "graph_in_instance"}
    own = bool(features.get("instances") and features.get("pid_filter_in_instance"))
    if tracer in able:
        own = own and bool(features.get(able[tracer]))
    return Buffer(base, journal, own)
