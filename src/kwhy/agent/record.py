"""The ``record`` operation: arm, run or follow, stream pages, put everything back."""

import json
import os
import signal
import time
from typing import Any, Dict, List, Optional, Sequence, Set

from . import dynamic, facts, pages, tracefs, tree, userpages
from .buffer import Buffer, choose
from .errors import AgentError, Cancelled
from .hold import Holder, Leaving, hold
from .journal import Journal
from .output import Output
from .probe import Prober, dynamic_events_file
from .process import Child, start
from .server import Request

SYSCALL_EVENTS = ("raw_syscalls/sys_enter", "raw_syscalls/sys_exit")
LINGER = 2.0  # s that descendants may outlive the command before recording ends


class Recording(object):
    """One recording, from an empty buffer to a clean target."""

    def __init__(
        self, request: Request, params: Dict[str, Any], journal: Journal, prober: Prober, cwd: str
    ) -> None:
        self.request = request
        self.params = params
        self.cwd = cwd
        self.begun = self.last = time.monotonic()
        self.timings: Dict[str, float] = {}
        self.tracer = str(params.get("tracer") or "function")
        self.features = prober.features()["features"]
        self.buffer: Buffer = choose(prober.tracefs(), journal, self.features, self.tracer)
        self.refused: Dict[str, Any] = {}
        self.probes: List[Dict[str, Any]] = []
        self.events: List[str] = []
        self.reader: Optional[pages.PageReader] = None
        self.child: Optional[Child] = None
        self.holder: Optional[Holder] = None
        self.sent = 0  # pages of user memory
        self.followed: Optional[int] = None
        self.followed_start = ""
        self.seen = tree.Seen()
        self.ended = ""
        self.notes: List[str] = []

    def mark(self, name: str) -> None:
        """Note how long the phase that ends here took, in ms."""
        now = time.monotonic()
        self.timings[name] = round((now - self.last) * 1000, 1)
        self.last = now

    # -- arm ------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Everything up to a buffer that records our tasks, and only them; nothing runs yet."""
        buffer, params = self.buffer, self.params
        definitions = params.get("probes") or []
        path = dynamic_events_file(buffer.base)
        if definitions:
            if path is None:
                raise AgentError("feature", "the kernel has no kprobe events", "kprobe_events")
            # Noted before the instance, so that it is undone after it: an event that is enabled
            # anywhere cannot be removed.
            buffer.note("probes", path=path, group=buffer.group)
        self._target()
        self.request.check()
        buffer.take()
        clock = str(params.get("clock") or "mono")
        if clock != tracefs.selected(tracefs.read_or(buffer.path + "/trace_clock")):
            buffer.set("trace_clock", clock)
        count = len(pages.cpus(buffer.path))
        each, total = pages.buffer_kb(params.get("buffer_kb"), count)
        buffer.set("buffer_size_kb", str(each))
        self.timings["buffer_kb"] = total
        self._options()
        self.mark("instance")
        if definitions and path:
            self.probes = dynamic.parse_all(definitions, buffer.group)
            dynamic.define(buffer.base, path, buffer.group, self.probes)
            self.mark("probes")
        self.request.check()
        self._filters()
        self._pids()
        self.mark("filters")
        self._enable_events()
        failed = [probe for probe in self.probes if not probe["ok"]]
        if failed and params.get("strict"):
            raise AgentError("feature", str(failed[0].get("error")), "probe")
        self.mark("events")
        self.request.check()
        if self.tracer != "nop":
            buffer.set("current_tracer", self.tracer)
        # Only now: the tracer of a buffer with an open trace_pipe_raw cannot be changed (EBUSY).
        self.reader = pages.PageReader(buffer.path)
        self.mark("tracer")

    def _target(self) -> None:
        params = self.params
        pid = params.get("pid")
        if pid is not None:
            if params.get("argv"):
                raise AgentError("usage", "record either a command or a pid")
            self.followed = int(pid)
            self.followed_start = tree.start_time(self.followed)
            if not self.followed_start:
                raise AgentError("command", "there is no process %d on the target" % self.followed)
        else:
            self.child = start(params, self.cwd, self.request.input)

    def _options(self) -> None:
        wanted = {"event-fork": "1", "function-fork": "1"}
        extra = self.params.get("options")
        if isinstance(extra, dict):
            wanted.update((str(name), str(int(value))) for name, value in extra.items())
        for name, value in wanted.items():
            try:
                self.buffer.set("options/" + os.path.basename(name), value)
            except OSError as error:
                self.refused["option " + name] = error.strerror

    def _filters(self) -> None:
        for key, name in (
            ("filter", "set_ftrace_filter"),
            ("notrace", "set_ftrace_notrace"),
            ("graph", "set_graph_function"),
        ):
            words = self.params.get(key)
            if not words:
                continue
            try:
                refused = self.buffer.set_list(name, [str(word) for word in words])
            except OSError as error:
                if key == "notrace":  # costs events that nobody needs, no more
                    self.refused[key] = error.strerror
                    continue
                raise AgentError("feature", "%s: %s" % (name, error.strerror), name)
            if refused:
                self.refused[key] = refused
            if key == "filter" and len(refused) == len(words):
                raise AgentError(
                    "feature", "none of the %d functions can be traced" % len(words), name
                )

    def _pids(self) -> None:
        if self.child is not None:
            tids = [self.child.pid]
            self._set_pids(tids)
        else:
            done: Set[int] = set()
            for _ in range(5):  # threads may start between listing and writing
                tids = [t for t in tree.tree_threads(self.followed or 0) if t not in done]
                if not tids:
                    break
                self._set_pids(tids)
                done.update(tids)
            if not done:
                raise AgentError("command", "the process ended before it could be followed")

    def _set_pids(self, tids: List[int]) -> None:
        words = [str(tid) for tid in tids]
        names = ["set_event_pid"] + (["set_ftrace_pid"] if self.tracer != "nop" else [])
        for name in names:
            self.buffer.set_list(name, words)

    def _enable_events(self) -> None:
        events = [] if self.params.get("syscalls") is False else list(SYSCALL_EVENTS)
        events += [str(event) for event in self.params.get("events") or [] if event not in events]
        conditions = self.params.get("event_filters") or {}
        for event in events:
            if not os.path.exists("%s/events/%s/enable" % (self.buffer.path, event)):
                self.refused[event] = "no such event"
                continue
            try:
                self.buffer.enable(event, conditions.get(event))
                self.events.append(event)
            except OSError as error:
                self.refused[event] = error.strerror
        ours = [probe for probe in self.probes if probe["ok"]]
        for probe in ours:
            condition = conditions.get(probe["name"])
            if condition:
                name = "%s/events/%s/%s" % (self.buffer.path, self.buffer.group, probe["name"])
                try:
                    tracefs.write(name + "/filter", condition)
                except OSError as error:
                    probe["filter_error"] = error.strerror
        if ours:
            self._enable_probes(ours)

    def _enable_probes(self, probes: List[Dict[str, Any]]) -> None:
        """All at once; one by one when that fails, so that each refusal is known by its name."""
        group = self.buffer.group
        try:
            self.buffer.enable(group)
            return
        except OSError:
            pass
        for probe in probes:
            try:
                self.buffer.enable("%s/%s" % (group, probe["name"]))
            except OSError as error:
                probe["ok"] = False
                probe["error"] = "cannot be armed: %s" % error.strerror

    def formats(self) -> Dict[str, str]:
        """Texts of the format files of all that is enabled, by "system/event"."""
        found = {}
        for event in self.events:
            found[event] = tracefs.read_or("%s/events/%s/format" % (self.buffer.base, event))
        for probe in self.probes:
            if probe["ok"]:
                found["%s/%s" % (self.buffer.group, probe["name"])] = probe["format"]
        return found

    def announce(self) -> None:
        """Tell the desk what is armed."""
        probes = [
            {key: value for key, value in probe.items() if key != "format"} for probe in self.probes
        ]
        header = {
            "instance": self.buffer.own,
            "group": self.buffer.group,
            "tracer": self.tracer,
            "probes": probes,
            "events": self.events,
            "refused": self.refused,
            "page_size": self.reader.page_size if self.reader else 0,
            "pid": self.child.pid if self.child else self.followed,
            "clock_ns": int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e9),
            "timings": dict(self.timings),
        }
        self.request.send("armed", header, json.dumps(self.formats()).encode("utf-8"))

    # -- run ------------------------------------------------------------------------------------

    def go(self) -> None:
        """Switch the buffer on and let the command run."""
        tracefs.write(self.buffer.path + "/tracing_on", "1")
        if self.child is not None:
            self.seen.look([self.child.pid])
            seconds = self.params.get("hold")
            if seconds:
                self.holder = hold(self.child.pid, float(seconds), self.params.get("others"))
            self.child.release()
        else:
            self.seen.look(self.buffer.live_tids())
        self.timings["until_release"] = round((time.monotonic() - self.begun) * 1000, 1)
        self.last = time.monotonic()

    def follow(self) -> None:
        """Until the end: forward output and pages, keep an eye on the tasks."""
        timeout = self.params.get("seconds")
        deadline = time.monotonic() + float(timeout) if timeout else None
        linger = float(self.params.get("linger") or LINGER)
        exited: Optional[float] = None
        output = Output(self.request, self.child)
        while True:
            self.request.check()
            output.forward()
            busy = self.reader is not None and self.reader.sweep(self.request, False) >= pages.BATCH
            if self.holder is not None:
                self._look(self.holder, output)
            live = self.buffer.live_tids()
            self.seen.look(live)
            now = time.monotonic()
            if self.child is not None:
                if exited is None and (self._held() or self.child.poll() is not None):
                    exited = now
                    self.request.send("exit", {"status": self._status()})
                    continue  # one more round for what came with the exit
                others = [tid for tid in live if tid not in self._at_exit()]
                quiet = not output.open or self._held() or now > (exited or now) + 0.2
                if exited is not None and not others and quiet:
                    self.ended = "exit"
                elif exited is not None and now > exited + linger:
                    self.ended = "linger"
                    self.notes.append(
                        "the command ended, %d of its tasks still ran %.1f s later: %s"
                        % (len(others), linger, ", ".join(str(tid) for tid in others[:20]))
                    )
            elif tree.start_time(self.followed or 0) != self.followed_start:
                self.ended = "exit"
            if self.request.stop.is_set():
                self.ended = "stop"
            elif deadline is not None and now > deadline and not self.ended:
                self.ended = "timeout"
            if self.ended:
                break
            if not busy:
                output.rest(self.holder.news if self.holder is not None else -1)
        if self.child is not None and self.ended in ("stop", "timeout"):
            if self.holder is not None:
                self.holder.release()
            self.kill_tree()
            output.forward()

    def _look(self, holder: Holder, output: Output) -> None:
        """Tell the desk who stands at its exit, and let go those that it has looked at."""
        for leaving in holder.look():
            if leaving is holder.first:
                continue  # it is told of when all is over
            output.forward()
            if self.reader is not None:
                self.reader.sweep(self.request, True)
            self._send_user(leaving)
            header = {key: getattr(leaving, key) for key in ("pid", "tids", "ends", "born")}
            self.request.send("leaving", header)
        while self.request.let_go:
            holder.let_go(self.request.let_go.popleft())

    def _send_user(self, leaving: Leaving) -> None:
        """A process's snapshots; pages are numbered throughout the recording."""
        self.request.send("user", {"pid": leaving.pid}, leaving.pages)
        snapshots = [
            (time, tid, [[address, self.sent + number] for address, number in places])
            for time, tid, places in leaving.snapshots
        ]
        self.request.send("user", {"pid": leaving.pid, "snapshots": snapshots})
        self.sent += len(leaving.pages) // userpages.PAGE

    def _at_exit(self) -> Sequence[int]:
        """The threads of the first process, if it is kept at its exit."""
        if self.holder is None or self.holder.first is None or not self._held():
            return ()
        return [self.holder.pid] + self.holder.first.tids  # the first of all may be dead

    def _held(self) -> bool:
        return self.holder is not None and self.holder.held()

    def _kept(self) -> bool:
        """Whether the command stays at its exit: it came there by itself, and nothing else runs."""
        return self._held() and self.ended == "exit"

    def _status(self) -> Optional[Dict[str, Any]]:
        """How the command ended, or will when it is let go."""
        if self.child is None:
            return None
        if self.child.status is None and self.holder is not None and self._held():
            return self.child.describe(self.holder.first.status if self.holder.first else 0)
        return self.child.status

    def kill_tree(self) -> None:
        """End the command's process group and every task of its tree."""
        assert self.child is not None
        if self.ended == "timeout":
            self.notes.append("the command was killed: it ran longer than the timeout")
        self.child.kill(signal.SIGKILL if self.ended == "timeout" else signal.SIGTERM)
        for tid in self.buffer.live_tids():
            if tid != os.getpid():
                try:
                    os.kill(tid, signal.SIGKILL)
                except OSError:
                    pass
        self.child.end()

    # -- end ------------------------------------------------------------------------------------

    def drain(self) -> Dict[str, Any]:
        """Stop recording, send what is left, and the result (before anything is torn down)."""
        tracefs.write(self.buffer.path + "/tracing_on", "0")
        self.mark("ran")
        counts = pages.lost(self.buffer.path)
        if self.reader is not None:
            while self.reader.sweep(self.request, True):
                self.request.check()
        first = self.holder.first if self.holder is not None and self._kept() else None
        if first is not None:
            self._send_user(first)
        result = {
            "status": self._status(),
            "held": first.tids if first is not None else [],
            "ended": self.ended,
            "timed_out": self.ended == "timeout",
            "lost": pages.lost_events(counts),
            "counts": counts,
            "tasks": self.seen.listing(),
            "pages": self.reader.total if self.reader else 0,
            "notes": self.notes,
        }
        self.mark("drain")
        return result

    def _let_go(self) -> None:
        """End the hold: when the desk asks (``stop``), is gone, or the time is up."""
        if self.holder is None:
            return
        if self._kept():
            self.request.stop.wait(float(self.params.get("hold") or 0))
        self.holder.release()

    def undo(self) -> List[str]:
        """Put everything back; returns what could not be."""
        if self.reader is not None:
            self.reader.close()
        problems = self.buffer.give_back()
        self._let_go()
        if self.child is not None:
            self.child.end()
            self.child.close()
        self.mark("undo")
        return problems


def record(
    request: Request, params: Dict[str, Any], journal: Journal, prober: Prober, cwd: str
) -> Dict[str, Any]:
    """See ``kwhy.link`` for parameters and messages."""
    recording = Recording(request, params, journal, prober, cwd)
    log = facts.KernelLog()
    try:
        recording.prepare()
        recording.announce()
        recording.go()
        recording.follow()
        result = recording.drain()
        result["kmsg"] = log.since()
        request.send("drained", result)
    except OSError as error:
        raise AgentError(
            "feature",
            "the kernel refuses a tracing setting: %s: %s" % (error.filename, error.strerror),
            "tracefs",
        )
    except Cancelled:
        raise
    finally:
        log.close()
        problems = recording.undo()
    result["restored"] = not problems
    result["problems"] = problems
    result["timings"] = recording.timings
    return result
