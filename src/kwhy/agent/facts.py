"""Facts from /proc: the system, one process, the kernel log."""

import os
import time
from typing import Any, Dict, List

from . import tracefs, tree
from .errors import AgentError
from .probe import identity

MAX_LOG = 400  # lines
MAX_LIST = 4096


class KernelLog(object):
    """Kernel messages from now on (``/dev/kmsg`` positioned at its end).

    Source: Documentation/ABI/testing/dev-kmsg.
    """

    def __init__(self) -> None:
        try:
            self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self.fd, 0, os.SEEK_END)
        except OSError:
            self.fd = -1

    def since(self) -> List[Dict[str, Any]]:
        """``[{"seq", "level", "time_us", "text"}]``, the last MAX_LOG."""
        return [parse_record(raw) for raw in read_records(self.fd)][-MAX_LOG:]

    def close(self) -> None:
        """Close the device."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read_records(fd: int) -> List[bytes]:
    """All records from the current position of an open /dev/kmsg."""
    records: List[bytes] = []
    if fd < 0:
        return records
    while len(records) < 100000:
        try:
            records.append(os.read(fd, 8192))
        except BrokenPipeError:
            continue  # overwritten under our hands: the next read gives the oldest there is
        except OSError:
            break
    return records


def parse_record(raw: bytes) -> Dict[str, Any]:
    """One /dev/kmsg record: "priority,sequence,microseconds,flags;text"."""
    head, _, body = raw.decode("utf-8", "replace").partition(";")
    fields = head.split(",")
    text = body.split("\n", 1)[0]
    try:
        numbers = [int(field) for field in fields[:3]]
    except ValueError:
        numbers = [0, 0, 0]
    return {"seq": numbers[1], "level": numbers[0] & 7, "time_us": numbers[2], "text": text}


def system() -> Dict[str, Any]:
    """uname, uptime, command line, sysctls that matter."""
    result = identity()
    result["uptime"] = tracefs.read_or("/proc/uptime").split(" ")[0]
    result["cmdline"] = tracefs.read_or("/proc/cmdline")
    result["loadavg"] = tracefs.read_or("/proc/loadavg")
    result["taint"] = tracefs.read_or("/proc/sys/kernel/tainted")
    result["clock"] = {
        "realtime": time.time(),
        "monotonic": time.monotonic(),
        "boottime": float(result["uptime"] or 0),
    }
    result["sysctl"] = {
        name: tracefs.read_or("/proc/sys/" + name.replace(".", "/"))
        for name in (
            "kernel.kptr_restrict",
            "kernel.dmesg_restrict",
            "kernel.perf_event_paranoid",
            "kernel.ftrace_enabled",
            "kernel.randomize_va_space",
            "kernel.yama.ptrace_scope",
            "kernel.unprivileged_userns_clone",
            "fs.nr_open",
            "fs.file-max",
            "vm.overcommit_memory",
            "vm.max_map_count",
        )
    }
    result["lsm"] = tracefs.read_or("/sys/kernel/security/lsm")
    return result


def process(pid: int) -> Dict[str, Any]:
    """What /proc tells about a process. Raises AgentError(absent)."""
    root = "/proc/%d" % pid
    status = {}
    for line in tracefs.read_or(root + "/status").splitlines():
        key, _, value = line.partition(":")
        status[key] = value.strip()
    if not status:
        raise AgentError("absent", "there is no process %d on the target" % pid)
    cmdline = tracefs.read_or(root + "/cmdline")
    return {
        "pid": pid,
        "status": status,
        "cmdline": [part for part in cmdline.split("\0") if part],
        "cgroup": tracefs.read_or(root + "/cgroup").splitlines(),
        "limits": _limits(tracefs.read_or(root + "/limits")),
        "wchan": tracefs.read_or(root + "/wchan"),
        "stat": tracefs.read_or(root + "/stat"),
        "oom_score_adj": tracefs.read_or(root + "/oom_score_adj"),
        "attr": tracefs.read_or(root + "/attr/current").rstrip("\0"),
        "threads": tree.threads(pid)[:MAX_LIST],
        "cwd": _link(root + "/cwd"),
        "exe": _link(root + "/exe"),
        "root": _link(root + "/root"),
        "namespaces": {name: _link("%s/ns/%s" % (root, name)) for name in _names(root + "/ns")},
        "fds": {name: _link("%s/fd/%s" % (root, name)) for name in _names(root + "/fd")[:MAX_LIST]},
        "maps": _maps(root),
    }


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _names(path: str) -> List[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _limits(text: str) -> Dict[str, List[str]]:
    """``{"Max open files": [soft, hard, unit]}``; columns are 26, 21, 21 wide (fs/proc/base.c)."""
    result = {}
    for line in text.splitlines()[1:]:
        result[line[:26].strip()] = line[26:].split()
    return result


def _maps(root: str) -> Dict[str, Any]:
    """Mapped files with their sizes, and how many mappings there are."""
    files: Dict[str, int] = {}
    count = 0
    try:
        with open(root + "/maps", "rb") as file:
            for line in file:
                count += 1
                fields = line.decode("utf-8", "replace").split(None, 5)
                start, _, end = fields[0].partition("-")
                name = fields[5].strip() if len(fields) > 5 else "[anon]"
                files[name] = files.get(name, 0) + int(end, 16) - int(start, 16)
    except OSError:
        pass
    return {"count": count, "files": dict(sorted(files.items())[:MAX_LIST])}
