"""What must be undone, written down before it is done.

One journal per agent process: ``/run/kwhy/agent-PID.json`` beside a lock file whose POSIX lock
lives exactly as long as the agent. Whoever gets the lock of another agent's journal knows that its
agent is dead, and undoes what the journal lists: the agent's own watchdog, or the next agent.
"""

import errno
import fcntl
import json
import os
import threading
import time
from typing import Any, Dict, List, Optional

from . import tracefs
from .errors import AgentError

Entry = Dict[str, Any]


class Journal(object):
    """The undo list of this process. Every ``add`` is on file before the change is made."""

    def __init__(self, directory: Optional[str] = None) -> None:
        self._directory = directory
        self._entries: List[Entry] = []
        self._lock = threading.Lock()
        self._lock_fd = -1
        self._serial = 0

    def add(self, do: str, **fields: Any) -> Entry:
        """Write down how to undo what comes next; returns the entry for ``undo``."""
        with self._lock:
            self._serial += 1
            entry = dict(fields, do=do, id=self._serial, path=tracefs.anchored(fields["path"]))
            self._entries.append(entry)
            self._store()
        return entry

    def undo(self, entry: Entry) -> None:
        """Undo one entry now and strike it out. Raises OSError when it cannot be undone."""
        undo_entry(entry)
        self.strike(entry)

    def strike(self, entry: Entry) -> None:
        """The entry needs no undoing any more."""
        with self._lock:
            self._entries = [other for other in self._entries if other is not entry]
            self._store()

    def close(self) -> List[str]:
        """Undo all that is left, last first, and remove the files; returns what failed."""
        with self._lock:
            problems = undo_all(self._entries)
            self._entries = []
            self._store()
            if self._lock_fd >= 0:
                path = self._path()
                for name in (path, _lock_path(path)):
                    _remove(name)
                os.close(self._lock_fd)
                self._lock_fd = -1
        return problems

    def _path(self) -> str:
        return "%s/agent-%d.json" % (self._directory or tracefs.run_dir(), os.getpid())

    def _store(self) -> None:
        path = self._path()
        if self._lock_fd < 0:
            if not self._entries:
                return
            self._lock_fd = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.lockf(self._lock_fd, fcntl.LOCK_EX)
        temporary = path + ".new"
        with open(temporary, "w") as file:
            json.dump(self._entries, file)
        os.rename(temporary, path)


def _lock_path(path: str) -> str:
    return path[: -len(".json")] + ".lock"


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def repair(
    directory: Optional[str] = None, pid: Optional[int] = None, skip: Optional[int] = None
) -> List[str]:
    """Undo what dead agents left behind (``pid``: only that one); returns one line per journal.

    Waits for a repair that another process has begun. ``skip``: a process with an open journal of
    its own must skip that one, since closing a second descriptor would drop its POSIX lock.
    """
    directory = directory or tracefs.RUN_DIR
    done: List[str] = []
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return done
    for name in names:
        if not (name.startswith("agent-") and name.endswith(".json")):
            continue
        if pid is not None and name != "agent-%d.json" % pid:
            continue
        if skip is not None and name == "agent-%d.json" % skip:
            continue
        result = _repair_one(os.path.join(directory, name))
        if result:
            done.append(result)
    return done


def _repair_one(path: str) -> Optional[str]:
    try:
        fd = os.open(_lock_path(path), os.O_RDWR)
    except OSError:
        _remove(path)
        return None
    try:
        if not _lock_of_the_dead(fd, path):
            return None
        try:
            with open(path) as file:
                entries = json.load(file)
        except (OSError, ValueError):
            return None  # another repair has finished meanwhile
        problems = undo_all(entries if isinstance(entries, list) else [])
        _remove(path)
        _remove(_lock_path(path))
        name = os.path.basename(path)[: -len(".json")]
        if problems:
            return "restored after %s, except: %s" % (name, "; ".join(problems))
        return "restored after %s" % name if entries else None
    finally:
        os.close(fd)


def _lock_of_the_dead(fd: int, path: str) -> bool:
    """Take the lock of a dead agent's journal; False when its agent lives.

    The lock may also be held by another repair, which ends by itself: wait for that.
    """
    pid = int(os.path.basename(path)[len("agent-") : -len(".json")])
    for _ in range(600):
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.exists(path)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
        if os.path.exists("/proc/%d" % pid) and not _is_zombie(pid):
            return False
        time.sleep(0.1)
    return False


def _is_zombie(pid: int) -> bool:
    stat = tracefs.read_or("/proc/%d/stat" % pid)
    return stat.rpartition(")")[2].split()[:1] == ["Z"]


# -- undoing ---------------------------------------------------------------------------------------


def undo_all(entries: List[Entry]) -> List[str]:
    """Undo a list, last first; returns one line for each that could not be undone."""
    problems = []
    for entry in reversed(entries):
        try:
            undo_entry(entry)
        except (OSError, AgentError, KeyError, ValueError, TypeError) as error:
            problems.append("%s %s: %s" % (entry.get("do"), entry.get("path", ""), error))
    return problems


def undo_entry(entry: Entry) -> None:
    """Undo one change; doing so twice, or before the change was made, does no harm."""
    do = entry["do"]
    path = tracefs.resolve(str(entry["path"]))
    if do == "instance":
        remove_instance(path)
    elif do == "probes":
        remove_probes(path, str(entry["group"]))
    elif do == "write":
        tracefs.write(path, str(entry["value"]))
    elif do == "clear":
        tracefs.clear(path)
    elif do == "expand":
        restore_expansion(path, str(entry["value"]))
    elif do == "rmtree":
        remove_tree(path)
    else:
        raise ValueError("unknown entry %r" % do)


def remove_instance(path: str) -> None:
    """Remove a trace instance; its tracer, events, filters and buffer go with it.

    EBUSY while any of its files is open (a reader that is just being killed): retried for 10 s.
    """
    try:
        tracefs.write(path + "/tracing_on", "0")
    except OSError:
        pass
    _retry_busy(lambda: os.rmdir(path))


def remove_probes(path: str, group: str) -> None:
    """Remove the dynamic events of ``group``, and no others, from a dynamic-events file."""
    names = own_probes(path, group)
    for start in range(0, len(names), 32):
        text = "".join("-:%s/%s\n" % (group, name) for name in names[start : start + 32])
        _retry_busy(lambda text=text: tracefs.write(path, text))


def own_probes(path: str, group: str) -> List[str]:
    """Names of the dynamic events in ``group``."""
    mark = ":%s/" % group
    names = []
    for line in tracefs.read_or(path).splitlines():
        head = line.split(" ", 1)[0]
        if mark in head:
            names.append(head.split(mark, 1)[1])
    return names


def remove_tree(path: str) -> None:
    """Remove a directory and what is in it, without complaint, never following a link."""
    for where, directories, files in os.walk(path, topdown=False):
        for name in files:
            _remove(os.path.join(where, name))
        for name in directories:
            inner = os.path.join(where, name)
            try:
                os.unlink(inner) if os.path.islink(inner) else os.rmdir(inner)
            except OSError:
                pass
    try:
        os.rmdir(path)
    except OSError:
        pass


def restore_expansion(path: str, before: str) -> None:
    """Leave the top-level buffer as large for its next user as it would have been.

    A fresh kernel shows "7 (expanded: 1408)" in buffer_size_kb: the buffer grows at first use.
    On older kernels (5.10, 6.1) ``ring_buffer_expanded`` in kernel/trace/trace.c is one flag for
    all buffers, so the use of an instance spends it, and the next tracer at the top level would be
    left with 7 KiB; newer ones keep it in struct trace_array.
    """
    now = tracefs.read_or(path)
    if "(expanded:" in before and "(expanded:" not in now and now == before.split()[0]:
        tracefs.write(path, before.split("expanded:")[1].strip(" )\n"))


def _retry_busy(action: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            action()
            return
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
        time.sleep(0.02)
