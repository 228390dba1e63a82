"""Which tasks: a process with its threads and descendants, and a list of those that were seen."""

import os
import signal
from typing import Any, Dict, List, Optional, Set

from . import tracefs

MAX_TASKS = 100000


def threads(pid: int) -> List[int]:
    """The thread ids of a process, [] when it is gone."""
    try:
        return sorted(int(name) for name in os.listdir("/proc/%d/task" % pid))
    except OSError:
        return []


def process(tid: int) -> int:
    """The process of a thread; the thread itself when that is not to be known."""
    return int(_facts(tid).get("Tgid") or tid)


def killed(tid: int) -> bool:
    """Whether SIGKILL waits for a task, so that it goes to its exit now."""
    return bool(int(_facts(tid).get("SigPnd") or "0", 16) >> (signal.SIGKILL - 1) & 1)


def syscall(tid: int) -> Optional[int]:
    """The number of the system call that a stopped task is in."""
    word = tracefs.read_or("/proc/%d/syscall" % tid).partition(" ")[0]
    return int(word) if word.isdigit() else None


def zombie(tid: int) -> bool:
    """Whether a task has given up all it had, or is gone."""
    facts = _facts(tid)
    return not facts or facts.get("State", "")[:1] in ("Z", "X")


def _facts(tid: int) -> Dict[str, str]:
    """/proc/TID/status by key; {} when it is gone."""
    lines = tracefs.read_or("/proc/%d/status" % tid).splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key: value.strip() for key, _, value in pairs}


def descendants(root: int) -> List[int]:
    """``root`` and the processes below it, by the parent in /proc/*/stat."""
    children: Dict[int, List[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = tracefs.read_or("/proc/%s/stat" % name)
            fields = stat.rpartition(")")[2].split()
            if len(fields) > 1:
                children.setdefault(int(fields[1]), []).append(int(name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def tree_threads(root: int) -> List[int]:
    """Thread ids of ``root`` and all its descendants."""
    result: List[int] = []
    for pid in descendants(root):
        result.extend(threads(pid))
    return result


def start_time(pid: int) -> str:
    """Tells a process from a later one with the same pid; "" when there is none."""
    fields = tracefs.read_or("/proc/%d/stat" % pid).rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X"):
        return ""
    return fields[19]


class Seen(object):
    """Tasks noticed while they lived. Best effort: short ones appear only in the events."""

    def __init__(self) -> None:
        self.tasks: Dict[int, Dict[str, Any]] = {}

    def look(self, tids: "Set[int] | List[int]") -> None:
        """Note the tasks not seen yet, and the names of the others when they changed."""
        for tid in tids:
            known = self.tasks.get(tid)
            if known is None:
                if len(self.tasks) < MAX_TASKS:
                    self._add(tid)
            else:
                comm = tracefs.read_or("/proc/%d/comm" % tid)
                if comm and comm != known["comm"]:
                    known["was"] = known["comm"]
                    known["comm"] = comm

    def _add(self, tid: int) -> None:
        task: Dict[str, Any] = {"tid": tid}
        for key, value in _facts(tid).items():
            if key == "Name":
                task["comm"] = value
            elif key in ("Tgid", "PPid"):
                task[key.lower()] = int(value)
            elif key == "Uid":
                task["uid"] = int(value.split()[1])
        if "comm" in task:
            self.tasks[tid] = task

    def listing(self) -> List[Dict[str, Any]]:
        """``[{"tid", "tgid", "comm", "ppid", "uid"}]`` by tid."""
        return [self.tasks[tid] for tid in sorted(self.tasks)]
