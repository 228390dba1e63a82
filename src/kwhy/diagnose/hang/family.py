"""Waiting for other processes: children, tracers, threads that have to end, a thaw."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.look import Look, claim
from kwhy.diagnose.hang.stacks import Frame, Stack
from kwhy.diagnose.hang.tasks import Task

_ANY, _GROUP = 4, 2  # PIDTYPE_MAX, PIDTYPE_PGID: include/linux/pid.h
_LISTENING = 1 << 22  # JOBCTL_LISTENING
_MAX_THREADS = 1 << 22  # PID_MAX_LIMIT
_DEEP = 64  # levels of control groups


def child(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """wait4(2) and its kin: any child (or tracee) that the call asks for."""
    m = look.memory
    found = look.locks.wait_queue(stack)
    base = claim(stack, frame, "child", 0, f"sleeping in {frame.name}")
    if found is None or not m.has("struct wait_opts", "child_wait"):
        return base
    asked = found[0] - m.offset("struct wait_opts", "child_wait")
    which = m.value("struct wait_opts", asked, "wo_type")
    wanted = m.value("struct wait_opts", asked, "wo_pid")
    if which < _ANY and not wanted:
        return base
    threads = _heard(look, stack.task, which, wanted)
    number = len(look.processes(threads))
    first = look.tasks.by_address[threads[0]] if threads else stack.task
    first = look.tasks.by_tid.get(first.tgid, first)
    name = f"process {first.tgid} ({first.comm})" if number == 1 else f"{number} processes"
    base = replace(
        base, proof="on the process's wait_chldexit", object=f"the end of {name}" if threads else ""
    )
    return replace(
        base, any_of=threads, complete=bool(threads),
        sure="observed" if threads else "unknown",
        note="" if threads else "no child is left that could end",
    )  # fmt: skip


def _heard(look: Look, task: Task, which: int, wanted: int) -> tuple[int, ...]:
    """The threads of the children and tracees whose end ends a wait of ``task``."""
    key = ("heard", task.tgid, which)
    if key not in look.cache:
        mine = dict.fromkeys((*look.tasks.threads(task.tgid), task.address))
        found: dict[int, dict[int, None]] = {}
        for child in dict.fromkeys(c for parent in mine for c in look.tasks.children(parent)):
            one = look.tasks.by_address[child]
            ends = found.setdefault(0 if which >= _ANY else _identity(look, one, which), {})
            ends.update(dict.fromkeys(look.tasks.threads(one.tgid)))
        look.cache[key] = {identity: tuple(threads) for identity, threads in found.items()}
    threads: tuple[int, ...] = look.cache[key].get(0 if which >= _ANY else wanted, ())
    return threads


def _identity(look: Look, task: Task, which: int) -> int:
    """The ``struct pid`` that a task is waited for by."""
    m = look.memory
    if which < _GROUP:
        return m.value("struct task_struct", task.address, "thread_pid")
    signal = m.value("struct task_struct", task.address, "signal")
    return m.value("struct signal_struct", signal, f"pids[{which}]")


def stopped(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """Stopped: by a tracer, which goes on with it, or by a signal until SIGCONT."""
    task = stack.task
    base = claim(stack, frame, "stopped", 0, f"sleeping in {frame.name}")
    tracer = look.tasks.by_address.get(task.tracer)
    if tracer is None:
        note = "stopped by a signal (SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU); SIGCONT lets it go on"
        return replace(base, note=note, sure="observed", object="SIGCONT")
    base = replace(
        base,
        object=f"its tracer, {tracer.tid} {tracer.comm}",
        proof="task->ptrace and task->parent",
    )
    threads = look.tasks.threads(tracer.tgid)
    # One that its tracer listens to (PTRACE_LISTEN) goes on by SIGCONT as well.
    listens = look.memory.value("struct task_struct", task.address, "jobctl") & _LISTENING
    return replace(base, any_of=threads, sure="observed", complete=bool(threads) and not listens)


def frozen(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """Frozen with its control group."""
    m = look.memory
    base = claim(stack, frame, "freezer", 0, f"sleeping in {frame.name}")
    if not m.has("struct cgroup", "freezer.freeze"):
        return base
    groups = m.value("struct task_struct", stack.task.address, "cgroups")
    group = m.value("struct css_set", groups, "dfl_cgrp")
    for here in reversed(_up(look, group)):
        if m.value("struct cgroup", here, "freezer.freeze"):
            note = "somebody has frozen the control group; 0 in its cgroup.freeze thaws it"
            return replace(
                base, address=here, proof="cgroup->freezer.freeze", sure="observed", note=note,
                object=f"control group {cgroup_path(look, here)}",
            )  # fmt: skip
    return replace(base, note="its control group is being thawed, or the system is suspending")


def frozen_group(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """The same where the compiler hides which function sleeps: only if a group is frozen."""
    found = frozen(look, stack, frame)
    return found if found is not None and found.address else None


def _up(look: Look, group: int) -> list[int]:
    """A control group and those above it."""
    m, found = look.memory, [group]
    for _ in range(_DEEP):
        above = m.value("struct cgroup", found[-1], "self.parent")
        if not above:
            break
        found.append(above - m.offset("struct cgroup", "self"))
    return found


def cgroup_path(look: Look, group: int) -> str:
    """Names up to the root of the hierarchy: "/system.slice/x"."""
    m, names = look.memory, []
    node = m.value("struct cgroup", group, "kn")
    parent = m.first("struct kernfs_node", "__parent", "parent")
    for _ in range(_DEEP):
        above = m.value("struct kernfs_node", node, parent)
        if not above:
            break
        names.append(m.string(m.value("struct kernfs_node", node, "name")))
        node = above
    return "/" + "/".join(reversed(names))


def exec_alone(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """execve(2) of one thread waits until the process's other threads have ended."""
    m = look.memory
    task = stack.task
    signal = m.value("struct task_struct", task.address, "signal")
    which = m.first("struct signal_struct", "group_exec_task", "group_exit_task")
    if m.value("struct signal_struct", signal, which) != task.address:
        return None
    others = [t for t in look.tasks.threads(task.tgid) if t != task.address]
    base = claim(stack, frame, "threads", signal, "")
    return _threads(base, others, "execve(2) ends all other threads first", f"signal->{which}")


def dumping(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """Before its core is dumped, all other threads of a process have to come to their end."""
    m, kind, task = look.memory, "struct core_state", stack.task
    base = look.locks.completion(stack, frame)
    if base is None:
        return None
    state = base.address - m.offset(kind, "startup")
    if m.value(kind, state, "dumper.task") != task.address:
        return None
    there = {task.address}
    here = m.value(kind, state, "dumper.next")
    while here and len(there) < _MAX_THREADS:
        there.add(m.value("struct core_thread", here, "task"))
        here = m.value("struct core_thread", here, "next")
    return _threads(
        base,
        [t for t in look.tasks.threads(task.tgid) if t not in there],
        "its core is dumped when they have",
        "core_state->startup",
    )


def dumped(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """A thread ends only after the core of its process has been dumped, by another thread."""
    m, task = look.memory, stack.task.address
    state = 0
    for kind, pointer in (("struct signal_struct", "signal"), ("struct mm_struct", "mm")):
        if m.has(kind, "core_state"):
            state = m.value(kind, m.value("struct task_struct", task, pointer), "core_state")
    dumper = m.value("struct core_state", state, "dumper.task") if state else 0
    if dumper not in look.tasks.by_address or dumper == task:
        return None
    return replace(
        claim(stack, frame, "threads", state, "core_state->dumper"), owners=(dumper,),
        sure="observed", object="the core dump of its process",
    )  # fmt: skip


def _threads(base: Claim, threads: Sequence[int], note: str, proof: str) -> Claim:
    """A wait for the end of ``threads`` of the same process."""
    which = "1 other thread" if len(threads) == 1 else f"{len(threads)} other threads"
    return replace(
        base, kind="threads", owners=tuple(threads), sure="observed", note=note, proof=proof,
        object=f"the end of {which}",
    )  # fmt: skip


def limited(text: str) -> Callable[[Look, Stack, Frame], Claim | None]:
    """Memory that a control group has no more of; ``text`` says what the kernel does about it."""

    def prove(look: Look, stack: Stack, frame: Frame) -> Claim | None:
        m = look.memory
        base = replace(claim(stack, frame, "memory", 0, f"sleeping in {frame.name}"), note=text)
        if not m.has("struct mem_cgroup", "css.cgroup"):
            return base
        groups = m.value("struct task_struct", stack.task.address, "cgroups")
        group = m.value("struct css_set", groups, "dfl_cgrp")
        for here in _up(look, group):
            told = _memory_of(look, here)
            if told:
                path = cgroup_path(look, here)
                return replace(
                    base, address=here, object=f"memory of control group {path}", sure="observed",
                    note=f"{text}: {told}", proof=f"sleeping in {frame.name}, and over the limit",
                )  # fmt: skip
        return base

    return prove


def _memory_of(look: Look, group: int) -> str:
    """How a group stands against its limits, "" when it is below them. Counters are in pages."""
    m = look.memory
    kind = "struct mem_cgroup"
    for number in range(m.width("struct cgroup", "subsys") // 8):
        css = m.u64(group + m.offset("struct cgroup", "subsys") + 8 * number)
        memory = css - m.offset(kind, "css") if css else 0
        if not memory or m.symbol("memory_cgrp_subsys") != m.value(kind, memory, "css.ss"):
            continue
        usage = m.value(kind, memory, "memory.usage")
        for limit, name in (("memory.max", "memory.max"), ("memory.high", "memory.high")):
            allowed = m.value(kind, memory, limit)
            if usage >= allowed:
                return f"{usage * 4:,} KiB used, {name} is {allowed * 4:,} KiB"
    return ""
