"""What a target's feature probe means for the user: what works, what does not, what to do."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["required", "better", "extra"]


@dataclass(frozen=True, slots=True)
class Check:
    """One ability. ``level``: required for any answer; better answers with it; or an extra."""

    name: str
    level: Level
    ok: bool
    text: str  # what it gives
    todo: str  # what to do when it is missing, "" otherwise


#: feature, level, what it gives. The remedy comes from the probe itself, or else from here.
ABILITIES: tuple[tuple[str, Level, str, str], ...] = (
    ("root", "required", "runs as root", "run kwhy as root on the target"),
    ("tracefs", "required", "tracefs is there", "use a kernel with CONFIG_FTRACE"),
    ("raw_syscalls", "required", "sees every system call", "needs CONFIG_FTRACE_SYSCALLS"),
    ("function_tracer", "required", "sees every function call", "needs CONFIG_FUNCTION_TRACER"),
    ("kallsyms", "required", "knows the kernel's symbols", "sysctl kernel.kptr_restrict=1"),
    ("kcore", "required", "reads live kernel code and memory", "needs /proc/kcore, no lockdown"),
    ("kprobe_events", "better", "reads values at any instruction", "needs CONFIG_KPROBE_EVENTS"),
    ("kretprobe_events", "better", "reads return values", "needs CONFIG_KRETPROBES"),
    ("btf", "better", "knows types without debug symbols", "needs CONFIG_DEBUG_INFO_BTF"),
    (
        "function_in_instance",
        "better",
        "traces in a buffer of its own",
        "an older kernel: borrowed",
    ),
    ("pid_filter_in_instance", "better", "filters by process in it", "an older kernel: borrowed"),
    ("kmsg", "better", "reads the kernel log", "root, or sysctl kernel.dmesg_restrict=0"),
    ("graph_in_instance", "extra", "function graph in a buffer of its own", "a newer kernel"),
    ("fprobe_events", "extra", "cheap probes on entry and return", "a newer kernel (6.4)"),
    ("fprobe_btf_args", "extra", "probes arguments by their names", "a newer kernel (6.4)"),
    ("funcgraph_retval", "extra", "return values in the graph", "CONFIG_FUNCTION_GRAPH_RETVAL"),
    ("func_args", "extra", "arguments in the function trace", "a newer kernel (6.15)"),
    ("hist_triggers", "extra", "counts inside the kernel", "needs CONFIG_HIST_TRIGGERS"),
)


def examine(hello: Mapping[str, Any]) -> list[Check]:
    """The checks of a target by its greeting (``Link.hello``, also stored in a case)."""
    features = hello.get("features")
    if not isinstance(features, Mapping):
        features = {}
    found = hello.get("why")
    why: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    checks = []
    for name, level, text, remedy in ABILITIES:
        ok = bool(features.get(name))
        todo = "" if ok else str(why.get(name) or remedy)
        checks.append(Check(name, level, ok, text, todo))
    lockdown = str(features.get("lockdown") or "none")
    if lockdown != "none":
        todo = str(why.get("lockdown") or "boot without lockdown")
        checks.append(Check("lockdown", "required", lockdown == "integrity", "no lockdown", todo))
    busy = str(features.get("busy") or "")
    if busy:
        todo = f"somebody else is tracing ({busy}); kwhy uses an instance where it can, else waits"
        checks.append(Check("free", "extra", False, "the top-level tracer is free", todo))
    return checks


def able(checks: list[Check]) -> bool:
    """Whether nothing that every answer needs is missing."""
    return all(check.ok for check in checks if check.level == "required")


def report(target: str, hello: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of ``kwhy doctor --json``, schema ``kwhy.doctor/1``."""
    checks = examine(hello)
    return {
        "schema": "kwhy.doctor/1",
        "target": target,
        "able": able(checks),
        "kernel": hello.get("kernel") or {},
        "agent": {key: hello.get(key) for key in ("agent", "protocol", "python", "uid", "cpus")},
        "checks": [asdict(check) for check in checks],
        "features": hello.get("features") or {},
        "notes": [*(hello.get("notes") or []), *(hello.get("repaired") or [])],
    }
