"""The operations ``threads`` and ``sample``: who burns time, and where."""

import os
import time
from typing import Any, Dict, List, Optional, Tuple

from . import perf, tracefs, tree
from .errors import AgentError
from .server import Request

TICK = 0.02  # s between two looks at the rings
MAX_EVENTS = 64
MAX_BYTES = 4 << 20  # of samples of one event
MAX_CPUS = 64  # that a thread may wander over while it is watched
DEAF = 1.5  # s without any interrupt that make a processor deaf; a tickless one has one a second


def thread(tid: int) -> Dict[str, Any]:
    """What /proc tells of a thread; raises AgentError(absent) when there is none."""
    root = "/proc/%d" % tid
    status = {}
    for line in tracefs.read_or(root + "/status").splitlines():
        key, _, value = line.partition(":")
        status[key] = value.strip()
    fields = tracefs.read_or(root + "/stat").rpartition(")")[2].split()
    if "Tgid" not in status or len(fields) < 37:
        raise AgentError("absent", "there is no thread %d on the target" % tid)
    return {
        "tid": tid,
        "pid": int(status["Tgid"]),
        "comm": status.get("Name", ""),
        "state": fields[0],
        "faults": int(fields[7]) + int(fields[9]),
        "user_ticks": int(fields[11]),
        "system_ticks": int(fields[12]),
        "cpu": int(fields[36]),
        "switches": int(status.get("voluntary_ctxt_switches") or 0),
        "preempted": int(status.get("nonvoluntary_ctxt_switches") or 0),
        "wchan": tracefs.read_or(root + "/wchan"),
    }


def threads(request: Request, params: Dict[str, Any]) -> Dict[str, Any]:
    """The threads of the process ``pid`` before and after ``seconds``, by tid."""
    pid = int(params["pid"])
    before = {tid: thread(tid) for tid in tree.threads(pid)[:4096]}
    if not before:
        raise AgentError("absent", "there is no process %d on the target" % pid)
    request.stop.wait(float(params.get("seconds") or 0.3))
    request.check()
    found: List[Dict[str, Any]] = []
    for tid, old in before.items():
        try:
            new = thread(tid)
        except AgentError:
            continue  # it ended meanwhile
        for key in ("user_ticks", "system_ticks"):
            new["spent_" + key] = new[key] - old[key]
        found.append(new)
    return {"threads": found}


class Watch(object):
    """The events of one request, on each processor where the thread has been seen."""

    def __init__(self, wanted: List[Dict[str, Any]]) -> None:
        self.wanted = wanted
        self.open: Dict[Tuple[int, int], perf.Event] = {}  # by processor and number of the event
        self.results: List[Dict[str, Any]] = [{"count": 0, "lost": 0} for _ in wanted]
        self.sent = [0] * len(wanted)
        self.cpus: List[int] = []

    def follow(self, cpu: int) -> None:
        """Watch the thread on that processor too."""
        self.cpus.append(cpu)
        for index, event in enumerate(self.wanted):
            try:
                self.open[cpu, index] = perf.Event(cpu, event)
            except OSError as error:
                self.results[index].update(error=perf.reason(error), errno=error.errno)
        for (where, _), each in self.open.items():
            if where == cpu:
                each.switch(True)

    def drain(self, request: Request, tid: int) -> None:
        """Count what came, and send it on as far as the limit allows."""
        for (_, index), each in self.open.items():
            data, count, lost = each.take(tid)
            self.results[index]["count"] += count
            self.results[index]["lost"] += lost
            if data and self.sent[index] < MAX_BYTES:
                self.sent[index] += len(data)
                request.send("samples", {"event": index}, data)

    def stop(self) -> None:
        """Stop all events; what they recorded can still be taken."""
        for each in self.open.values():
            each.switch(False)

    def close(self) -> None:
        """Remove all events."""
        for each in self.open.values():
            each.close()


def sample(request: Request, params: Dict[str, Any]) -> Dict[str, Any]:
    """Watch the thread ``tid`` with ``events`` (see ``perf.attributes``) for ``seconds``.

    Messages ``samples`` with the header ``{"event": index}`` and raw records; the result has
    ``events``: per event how many records the thread had, how many were lost, or an ``error``;
    ``before`` and ``after``: the thread, null once it has gone; ``maps`` of its process; with
    ``others``, ``running``: the threads of other processors that were runnable both at the start
    and at the end. An event that the kernel refuses does not spoil the others. ``deaf``: the
    thread's processor takes no interrupts, so that no event was tried there.
    """
    tid = int(params["tid"])
    wanted = params.get("events") or []
    if len(wanted) > MAX_EVENTS:
        raise AgentError("usage", "over %d events in one request" % MAX_EVENTS)
    before = thread(tid)
    running = runnable(before["cpu"]) if params.get("others") else {}
    after: Optional[Dict[str, Any]] = before
    watch = Watch(wanted)
    begun = time.monotonic()
    silent = deaf(before)
    try:
        end = begun + (0.0 if silent else float(params.get("seconds") or 1.0))
        while after is not None and time.monotonic() < end and not request.stop.is_set():
            request.check()
            if after["cpu"] not in watch.cpus and len(watch.cpus) < MAX_CPUS:
                watch.follow(after["cpu"])
            watch.drain(request, tid)
            request.stop.wait(TICK)
            after = _thread_or_none(tid)
        watch.stop()
        watch.drain(request, tid)
    finally:
        watch.close()
    return {
        "before": before,
        "after": after,
        "seconds": round(time.monotonic() - begun, 3),
        "events": watch.results,
        "cpus": watch.cpus,
        "deaf": silent,
        "maps": _maps(before["pid"]),
        "running": _still(running, before["cpu"]),
    }


def deaf(before: Dict[str, Any]) -> bool:
    """Whether the thread keeps all interrupts off.

    An event is set up on another processor by an interrupt, and who sets it up waits for that with
    his own processor (smp_call_function_single() in kernel/smp.c).
    """
    end = time.monotonic() + DEAF
    first = interrupts(before["cpu"])
    now: Optional[Dict[str, Any]] = before
    while now is not None and now["state"] == "R" and now["cpu"] == before["cpu"]:
        if interrupts(before["cpu"]) != first or first is None:
            return False
        if time.monotonic() > end:
            return True
        time.sleep(TICK)
        now = _thread_or_none(before["tid"])
    return False


def interrupts(cpu: int) -> Optional[int]:
    """How many interrupts a processor has taken so far, None when that is not told."""
    lines = tracefs.read_or("/proc/interrupts").splitlines()
    names = lines[0].split() if lines else []
    if "CPU%d" % cpu not in names:
        return None
    column = 1 + names.index("CPU%d" % cpu)
    counts = [line.split()[column : column + 1] for line in lines[1:]]
    return sum(int(count) for each in counts for count in each if count.isdigit())


def _thread_or_none(tid: int) -> Optional[Dict[str, Any]]:
    try:
        return thread(tid)
    except AgentError:
        return None


def _maps(pid: int) -> List[str]:
    """The executable mappings of a process, as /proc/PID/maps has them."""
    text = tracefs.read_or("/proc/%d/maps" % pid)
    lines = [line for line in text.splitlines() if "x" in line.split(" ", 2)[1]]
    return lines[:2048]


def runnable(cpu: int) -> Dict[int, str]:
    """The names of all threads in state R but our own, by tid; not those of processor ``cpu``."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            for tid in tree.threads(int(name)):
                stat = tracefs.read_or("/proc/%d/stat" % tid)
                comm, _, rest = stat.partition("(")[2].rpartition(")")
                fields = rest.split()
                if len(fields) > 36 and fields[0] == "R" and int(fields[36]) != cpu:
                    found[tid] = comm
    return found


def _still(before: Dict[int, str], cpu: int) -> List[Dict[str, Any]]:
    """Those of ``before`` that are runnable now as well, on other processors than ``cpu``."""
    now = runnable(cpu) if before else {}
    both = sorted(set(before) & set(now))
    return [{"tid": other, "comm": before[other]} for other in both]
