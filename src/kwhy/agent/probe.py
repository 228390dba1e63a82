"""What this target can do, found out by trying, never by its version.

Each feature is true, false or a value; ``why`` has a sentence and a remedy for what is missing.
"""

import os
import resource
import sys
import threading
from typing import Any, Dict, List, Optional, Tuple

from . import AGENT_VERSION, kcore, tracefs
from .errors import AgentError
from .journal import Journal

Features = Dict[str, Any]


def identity() -> Dict[str, Any]:
    """Who the agent is and which kernel it sits on; cheap."""
    uname = os.uname()
    return {
        "agent": AGENT_VERSION,
        "pid": os.getpid(),
        "python": "%d.%d.%d" % sys.version_info[:3],
        "uid": os.geteuid(),
        "kernel": {
            "release": uname.release,
            "version": uname.version,
            "arch": uname.machine,
            "build_id": build_id(read_bytes("/sys/kernel/notes")),
            "boot_id": tracefs.read_or("/proc/sys/kernel/random/boot_id"),
        },
        "host": uname.nodename,
        "cpus": os.sysconf("SC_NPROCESSORS_ONLN"),
        "page_size": resource.getpagesize(),
        "memory": os.sysconf("SC_PHYS_PAGES") * resource.getpagesize(),
        "byteorder": sys.byteorder,
    }


def read_bytes(path: str) -> bytes:
    """A small file's bytes, empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def build_id(notes: bytes) -> str:
    """The hex GNU build-id among ELF notes (type 3, name "GNU"), "" without one."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = [
            int.from_bytes(notes[at + i : at + i + 4], sys.byteorder) for i in (0, 4, 8)
        ]
        name = notes[at + 12 : at + 12 + name_size]
        start = at + 12 + (name_size + 3 & ~3)
        if kind == 3 and name.rstrip(b"\0") == b"GNU":
            return bytearray(notes[start : start + size]).hex()
        at = start + (size + 3 & ~3)
    return ""


class Prober(object):
    """Probes once and remembers; what can change under way (``busy``) is looked at each time."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._lock = threading.Lock()
        self._features: Optional[Features] = None
        self._why: Dict[str, str] = {}
        self._notes: List[str] = []

    def tracefs(self) -> str:
        """Where tracefs is. Raises AgentError(feature tracefs or root)."""
        return tracefs.locate()

    def features(self) -> Dict[str, Any]:
        """``{"features": {...}, "why": {...}, "notes": [...]}``."""
        with self._lock:
            if self._features is None:
                self._features = self._probe()
            changing = self._changing()
            return {
                "features": dict(self._features, **changing),
                "why": dict(self._why),
                "notes": list(self._notes),
            }

    # -- the probes -----------------------------------------------------------------------------

    def _missing(self, feature: str, why: str) -> bool:
        self._why[feature] = why
        return False

    def _probe(self) -> Features:
        features: Features = {}
        features["root"] = os.geteuid() == 0 or self._missing(
            "root", "the agent is not root: run kwhy as root (sudo) on the target"
        )
        features["kcore"] = self._kcore()
        features["btf"] = os.access("/sys/kernel/btf/vmlinux", os.R_OK) or self._missing(
            "btf", "no /sys/kernel/btf/vmlinux: the kernel lacks CONFIG_DEBUG_INFO_BTF"
        )
        features["btf_modules"] = features["btf"] and _some_module_btf()
        features["kallsyms"] = self._kallsyms()
        features["kmsg"] = os.access("/dev/kmsg", os.R_OK) or self._missing(
            "kmsg", "/dev/kmsg cannot be read: sysctl kernel.dmesg_restrict, or not root"
        )
        try:
            base = self.tracefs()
        except AgentError as error:
            features["tracefs"] = self._missing("tracefs", error.message)
            return features
        features["tracefs"] = "mounted for the agent alone" if tracefs.detached() else base
        if tracefs.detached():
            self._notes.append("nobody has mounted tracefs: the agent did, for itself alone")
        self._files(base, features)
        self._instance(base, features)
        self._dynamic_events(base, features)
        return features

    def _changing(self) -> Features:
        lockdown = tracefs.read_or("/sys/kernel/security/lockdown")
        found: Features = {"lockdown": tracefs.selected(lockdown) if lockdown else "none"}
        if found["lockdown"] != "none":
            self._missing(
                "lockdown",
                "kernel lockdown is on (%s): memory and probes are refused; "
                "boot with lockdown=none or without secure boot" % found["lockdown"],
            )
        if self._features is not None and self._features.get("tracefs"):
            found["busy"] = "; ".join(users(self.tracefs()))
            enabled = tracefs.read_or("/proc/sys/kernel/ftrace_enabled", "1") != "0"
            if self._features is not None and self._features.get("function_tracer"):
                found["function_tracer"] = enabled or self._missing(
                    "function_tracer", "sysctl kernel.ftrace_enabled is 0: set it to 1"
                )
        return found

    def _kcore(self) -> bool:
        try:
            core = kcore.Kcore()
        except AgentError as error:
            return self._missing("kcore", error.message)
        try:
            for address, _, _ in core.segments[:8]:
                if core.read([(address, 8)])[1]:
                    return True
            return self._missing("kcore", "/proc/kcore opens but gives no memory (lockdown?)")
        finally:
            os.close(core.fd)

    def _kallsyms(self) -> bool:
        try:
            with open("/proc/kallsyms", "rb") as file:
                for _ in range(2000):
                    line = file.readline()
                    if line and int(line.split(b" ", 1)[0], 16) > 1 << 32:
                        return True
        except (OSError, ValueError):
            return self._missing("kallsyms", "no readable /proc/kallsyms: CONFIG_KALLSYMS?")
        return self._missing(
            "kallsyms", "/proc/kallsyms hides addresses: root and sysctl kernel.kptr_restrict=1"
        )

    def _files(self, base: str, features: Features) -> None:
        tracers = tracefs.read_or(base + "/available_tracers").split()
        for tracer, option in (
            ("function", "FUNCTION_TRACER"),
            ("function_graph", "FUNCTION_GRAPH_TRACER"),
        ):
            name = "function_tracer" if tracer == "function" else tracer
            features[name] = tracer in tracers or self._missing(
                name, "the kernel has no %s tracer (CONFIG_%s)" % (tracer, option)
            )
        features["clocks"] = (
            tracefs.read_or(base + "/trace_clock").replace("[", " ").replace("]", " ").split()
        )
        features["raw_syscalls"] = os.path.exists(
            base + "/events/raw_syscalls/sys_enter/id"
        ) or self._missing("raw_syscalls", "no raw_syscalls events (CONFIG_FTRACE_SYSCALLS)")
        features["hist_triggers"] = os.path.exists(base + "/events/raw_syscalls/sys_exit/hist")
        features["synthetic_events"] = os.path.exists(base + "/synthetic_events")
        features["filter_addresses"] = os.path.exists(base + "/available_filter_functions_addrs")
        options = base + "/options/"
        features["options"] = sorted(
            name
            for name in _names(options)
            if name.startswith(("func", "event-fork", "record-tgid", "overwrite"))
        )
        for name in ("funcgraph-retval", "funcgraph-args", "func-args"):
            features[name.replace("-", "_")] = os.path.exists(options + name)
        features["subbuf_size"] = os.path.exists(base + "/buffer_subbuf_size_kb")

    def _instance(self, base: str, features: Features) -> None:
        names = ("instances", "function_in_instance", "graph_in_instance", "pid_filter_in_instance")
        for name in names:
            features[name] = False
        path = "%s/instances/kwhy-probe-%d" % (base, os.getpid())
        before = tracefs.read_or(base + "/buffer_size_kb")
        expand = self.journal.add("expand", path=base + "/buffer_size_kb", value=before)
        entry = self.journal.add("instance", path=path)
        try:
            try:
                os.mkdir(path)
            except OSError as error:
                self._missing("instances", "no trace instances: %s" % error.strerror)
                return
            features["instances"] = True
            tracers = tracefs.read_or(path + "/available_tracers").split()
            features["function_in_instance"] = "function" in tracers
            features["graph_in_instance"] = "function_graph" in tracers or self._missing(
                "graph_in_instance",
                "function_graph works only at the top level here: it is borrowed and given back",
            )
            needed = ("set_ftrace_pid", "set_event_pid", "options/function-fork")
            features["pid_filter_in_instance"] = all(
                os.path.exists(path + "/" + name) for name in needed + ("options/event-fork",)
            ) or self._missing("pid_filter_in_instance", "instances cannot filter by process here")
        finally:
            self.journal.undo(entry)
            self.journal.undo(expand)

    def _dynamic_events(self, base: str, features: Features) -> None:
        path = dynamic_events_file(base)
        attempts: Tuple[Tuple[str, str, str], ...] = (
            ("kprobe_events", "p:%s/a vfs_read", "CONFIG_KPROBE_EVENTS"),
            ("kretprobe_events", "r:%s/b vfs_read $retval", "CONFIG_KPROBE_EVENTS, kretprobes"),
            ("kprobe_btf_args", "p:%s/c vfs_read file", "CONFIG_PROBE_EVENTS_BTF_ARGS (6.4)"),
            ("kretprobe_entry_args", "r:%s/d vfs_read $arg1", "a newer kernel"),
        )
        for name, _, _ in attempts:
            features[name] = False
        if path is None:
            self._missing("kprobe_events", "no kprobe_events file: CONFIG_KPROBE_EVENTS is off")
            return
        group = "kwhy_probe_%d" % os.getpid()
        entry = self.journal.add("probes", path=path, group=group)
        try:
            for name, definition, needs in attempts:
                try:
                    tracefs.write(path, definition % group + "\n")
                    features[name] = True
                except OSError as error:
                    self._missing(name, "refused (%s): needs %s" % (error.strerror, needs))
        finally:
            self.journal.undo(entry)
        # Defining an fprobe event takes 0.3 s with its removal, so the kernel's own list of what it
        # understands has to do. The two kinds of probe share their arguments (trace_probe.c);
        # $argN in return probes came to both at once ("tracing/probes: Support $argN in return
        # probe (kprobe and fprobe)").
        features["fprobe_events"] = "f[:" in tracefs.read_or(base + "/README") or self._missing(
            "fprobe_events", "no fprobe events: needs CONFIG_FPROBE_EVENTS (6.4)"
        )
        features["fprobe_btf_args"] = features["fprobe_events"] and features["kprobe_btf_args"]
        features["fprobe_return_args"] = (
            features["fprobe_events"] and features["kretprobe_entry_args"]
        )


def dynamic_events_file(base: str) -> Optional[str]:
    """The file that takes probe definitions: ``dynamic_events`` (5.0), else ``kprobe_events``."""
    for name in ("dynamic_events", "kprobe_events"):
        if os.path.exists(base + "/" + name):
            return base + "/" + name
    return None


def users(base: str) -> List[str]:
    """Who uses the top-level trace buffer: one phrase for each sign of use."""
    found = []
    tracer = tracefs.read_or(base + "/current_tracer", "nop")
    if tracer != "nop":
        found.append("current_tracer is %s" % tracer)
    events = tracefs.read_or(base + "/set_event").split()
    if events:
        more = " and %d more" % (len(events) - 1) if len(events) > 1 else ""
        found.append("event %s%s is enabled" % (events[0], more))
    for name, empty in (
        ("set_ftrace_filter", "all functions enabled"),
        ("set_ftrace_notrace", "no functions disabled"),
        ("set_ftrace_pid", "no pid"),
    ):
        text = tracefs.read_or(base + "/" + name)
        if text and empty not in text:
            found.append("%s is set" % name)
    if tracefs.read_or(base + "/set_event_pid"):
        found.append("set_event_pid is set")
    return found


def _names(path: str) -> List[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _some_module_btf() -> bool:
    return any(name != "vmlinux" for name in _names("/sys/kernel/btf"))
