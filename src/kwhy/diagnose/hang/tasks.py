"""All tasks of a kernel, found through the tree of process numbers and checked one by one.

The tree (``init_pid_ns.idr``) is read level by level, a few large exchanges with the target instead
of one for each task, and unlike the list of tasks it cannot be torn into a ring.
"""

from dataclasses import dataclass

from kwhy import arch
from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.memory import Memory

MAX_TASKS = 1 << 22  # PID_MAX_LIMIT
_INTERNAL = 2  # the low bits of an entry that is a node: include/linux/xarray.h
_STATES = {1: "S", 2: "D", 4: "T", 8: "t", 0x20: "I"}
_NOLOAD, _REPORT = 0x400, 0x7F
_FROZEN, _RTLOCK_WAIT = 0x8000, 0x1000  # since 6.1 and 5.15; unused bits before
_KTHREAD = 0x00200000  # PF_KTHREAD
_EXIT_DEAD, _EXIT_ZOMBIE = 0x10, 0x20


@dataclass(frozen=True, slots=True)
class Task:
    """A task as it was read. ``stack`` are the addresses of its kernel stack, none if gone.

    ``switches`` counts how often it gave up the CPU: equal numbers at two looks mean that it has
    not run in between. ``seen`` is when it last began to run, in the scheduler's ns. ``parent`` is
    the task that made it, ``tracer`` the one that traces it, 0 for none.
    """

    address: int
    tid: int
    tgid: int
    comm: str
    state: str
    on_cpu: bool
    stack: range
    sp: int
    switches: int
    seen: int
    kthread: bool
    files: int
    mm: int
    parent: int
    tracer: int

    @property
    def asleep(self) -> bool:
        """Whether it waits for something, so that its stack stands still."""
        return not self.on_cpu and self.state in "SDITt" and self.sp != 0

    @property
    def idle(self) -> bool:
        """Whether its sleep is of the kind that does not count as load."""
        return self.state == "I"

    def on_stack(self, address: int) -> bool:
        """Whether an address lies on its kernel stack."""
        return address in self.stack


class Tasks:
    """Every task by address and by number. ``torn`` counts those that changed while being read."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._stack_size = arch.of(memory.kernel.arch).stack_size
        self.torn = 0
        self.by_address: dict[int, Task] = {}
        self.by_tid: dict[int, Task] = {}
        self._threads: dict[int, tuple[int, ...]] | None = None
        self._children: dict[int, tuple[int, ...]] | None = None
        self._by_files: dict[int, tuple[int, ...]] | None = None
        self._fields()
        for address in self._addresses():
            self._add(address)

    def still_there(self, address: int) -> bool:
        """Whether an address that is no known task is one that can be found by its number.

        __unhash_process() (kernel/exit.c) takes a task that is gone off its ``struct pid``; what
        its memory is used for since then does not hang there either.
        """
        m, kind = self._memory, "struct task_struct"
        try:
            pid = m.value(kind, address, "thread_pid")
            first = m.u64(pid + m.offset("struct pid", "tasks"))
            return first == address + m.offset(kind, "pid_links")
        except MissingMemory:
            return False

    def threads(self, tgid: int) -> tuple[int, ...]:
        """Addresses of the threads of a process that have not ended."""
        if self._threads is None:
            found: dict[int, list[int]] = {}
            for task in self.by_address.values():
                if task.state not in "ZX":
                    found.setdefault(task.tgid, []).append(task.address)
            self._threads = {tgid: tuple(members) for tgid, members in found.items()}
        return self._threads.get(tgid, ())

    def children(self, task: int) -> tuple[int, ...]:
        """Addresses of the processes that ``task`` made, and of the tasks that it traces."""
        if self._children is None:
            found: dict[int, list[int]] = {}
            for one in self.by_address.values():
                parent = one.parent if one.tid == one.tgid else 0
                for other in {parent, one.tracer} - {0}:
                    found.setdefault(other, []).append(one.address)
            self._children = {of: tuple(members) for of, members in found.items()}
        return self._children.get(task, ())

    def sharing_files(self, files: int) -> tuple[int, ...]:
        """Leaders of the processes with that table of open files, the owner of POSIX locks."""
        if self._by_files is None:
            found: dict[int, list[int]] = {}
            for task in self.by_address.values():
                if task.tid == task.tgid and task.files:
                    found.setdefault(task.files, []).append(task.address)
            self._by_files = {files: tuple(leaders) for files, leaders in found.items()}
        return self._by_files.get(files, ())

    def _add(self, address: int) -> None:
        try:
            task = self._task(address)
        except MissingMemory:
            self.torn += 1
            return
        if task is not None:
            self.by_address[address] = task
            self.by_tid[task.tid] = task

    def _fields(self) -> None:
        m = self._memory
        self._state = m.first("struct task_struct", "__state", "state")
        paths = ["pid", "tgid", "comm", self._state, "exit_state", "stack", "nvcsw", "thread.sp"]
        paths += ["flags", "on_cpu", "files", "mm", "real_parent", "parent", "ptrace"]
        self._spots = [m.offset("struct task_struct", path) for path in paths]
        self._seen = m.first("struct task_struct", "sched_info.last_arrival", "se.exec_start")

    def _addresses(self) -> list[int]:
        """Task addresses from struct pid, level by level."""
        m = self._memory
        namespace = m.symbol("init_pid_ns")
        root = namespace + m.offset("struct pid_namespace", "idr.idr_rt.xa_head")
        slots = m.offset("struct xa_node", "slots")
        node_size = m.size("struct xa_node")
        count = m.width("struct xa_node", "slots") // 8
        leaves: list[int] = []
        level = [m.u64(root)]
        for _depth in range(12):
            nodes = [e - _INTERNAL for e in level if e & 3 == _INTERNAL and e > 4096]
            leaves += [entry for entry in level if entry and entry & 3 == 0]
            if not nodes:
                break
            m.evidence.prefetch((node, node_size) for node in nodes)
            level = []
            for node in nodes:
                try:
                    raw = m.read(node + slots, 8 * count)
                except MissingMemory:
                    self.torn += 1
                    continue
                level += [int.from_bytes(raw[i : i + 8], "little") for i in range(0, 8 * count, 8)]
            level = [entry for entry in dict.fromkeys(level) if entry][:MAX_TASKS]
        first = m.offset("struct pid", "tasks")
        links = m.offset("struct task_struct", "pid_links")
        m.evidence.prefetch((pid, first + 8) for pid in leaves)
        addresses = []
        for pid in leaves:
            try:
                node = m.u64(pid + first)
            except MissingMemory:
                self.torn += 1
                continue
            if node:
                addresses.append(node - links)
        addresses.append(m.symbol("init_task"))
        m.evidence.prefetch((a + spot, 8) for a in addresses for spot in self._spots)
        return addresses

    def _task(self, address: int) -> Task | None:
        m = self._memory
        value = m.value
        kind = "struct task_struct"
        lowest = value(kind, address, "stack")
        stack = range(lowest, lowest + self._stack_size if lowest else 0)
        sp = value(kind, address, "thread.sp")
        exit_state = value(kind, address, "exit_state")
        return Task(
            address=address,
            tid=value(kind, address, "pid"),
            tgid=value(kind, address, "tgid"),
            comm=m.text(kind, address, "comm"),
            state=_letter(value(kind, address, self._state), exit_state),
            on_cpu=bool(value(kind, address, "on_cpu")),
            stack=stack,
            sp=sp if sp in stack else 0,
            switches=value(kind, address, "nvcsw") + value(kind, address, "nivcsw"),
            seen=value(kind, address, self._seen),
            kthread=bool(value(kind, address, "flags") & _KTHREAD),
            files=value(kind, address, "files"),
            mm=value(kind, address, "mm"),
            parent=value(kind, address, "real_parent"),
            tracer=value(kind, address, "parent") if value(kind, address, "ptrace") else 0,
        )


def _letter(state: int, exit_state: int) -> str:
    """The letter of proc(5), fs/proc/array.c."""
    if exit_state & _EXIT_ZOMBIE:
        return "Z"
    if exit_state & _EXIT_DEAD:
        return "X"
    if state & 2 and state & _NOLOAD:
        return "I"
    if state & (_FROZEN | _RTLOCK_WAIT):
        return "D"
    low = state & _REPORT
    return next((_STATES[bit] for bit in (2, 1, 4, 8) if low & bit), "R")
