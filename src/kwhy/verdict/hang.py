"""The answer of ``kwhy hang``: who waits for what, who holds it, and whether it is a deadlock."""

from dataclasses import dataclass, field
from typing import Final, Literal

from kwhy.verdict import common
from kwhy.verdict.common import ADDED, JSON, SCHEMA, Confidence, Evidence, KernelId

RootKind = Literal[
    "deadlock", "possible", "gone", "lost", "running", "ready", "asleep", "any", "unknown"
]
"""Why a chain of waits ends where it does.

deadlock  a cycle of tasks through locks that they own
possible  a cycle, if a lock's holder is who it seems to be
gone      the lock's owner ended without releasing it
lost      the lock is free, and its first waiter was not woken
running   the owner is on a CPU
ready     the owner wants to run
asleep    the owner sleeps for something that no task owns
any       one of several tasks that are known can end it
unknown   who could end the wait is not recorded, or is no task
"""

KINDS: Final[dict[str, str]] = {
    "mutex": "a mutex; the owner is in the lock",
    "rwsem-read": "a read/write semaphore, for reading; a writer is in the lock, readers are not",
    "rwsem-write": "a read/write semaphore, for writing",
    "semaphore": "a counting semaphore; it has no owner",
    "rt_mutex": "a mutex with priority inheritance; the owner is in the lock",
    "percpu-rwsem-read": "a per-CPU read/write semaphore, for reading",
    "percpu-rwsem-write": "a per-CPU read/write semaphore, for writing, or waiting for its readers",
    "completion": "another task's word that something is done",
    "futex": "a futex; the owner is in its word, or in the C library's mutex around it",
    "flock": "a flock(2) lock; the owner is who took it",
    "posix-lock": "a fcntl(2) lock; the owner is the process",
    "ofd-lock": "a fcntl(2) lock of an open file; the owner is whoever has that open",
    "lease": "a file lease to be given back",
    "pipe-read": "data in a pipe",
    "pipe-write": "room in a pipe",
    "fifo-open": "somebody to open the other end of a FIFO",
    "tty": "input, or room, of a terminal",
    "eventfd": "a number in an eventfd",
    "vfork": "a vfork child to exec or exit",
    "threads": "another thread, or all others, of the process to end",
    "helper": "a program that the kernel has started to end: modprobe, request-key",
    "fanotify": "a scanner to allow the use of a file",
    "userfault": "a page that another process supplies",
    "sysv-sem": "a System V semaphore; it has no owner",
    "message": "a message, or room for one",
    "inotify": "a change to a watched file",
    "io_uring": "requests of an io_uring to be finished",
    "journal": "a file system's journal",
    "writeback": "dirty pages to be written",
    "memory": "memory that its control group has no more of",
    "folio": "a bit (lock, writeback) of a page in memory",
    "buffer": "a buffer head's bit",
    "bit": "a bit in some structure",
    "io": "block I/O",
    "freeze": "a frozen file system to thaw",
    "child": "a child process",
    "timer": "time",
    "poll": "any of several files",
    "epoll": "any of several files",
    "signal": "a signal",
    "socket": "a network peer",
    "fuse": "the daemon of a file system in user space",
    "nfs": "a server",
    "workqueue": "a work item to finish",
    "rcu": "an RCU grace period",
    "freezer": "a cgroup to be thawed",
    "stopped": "a tracer or SIGCONT",
    "wait-queue": "a wait queue of the function named",
    "idle": "work (a kernel thread with nothing to do)",
    "unknown": "something that is not known",
}
"""What the ``kind`` of a wait means."""

WANTED: Final[dict[str, str]] = {
    "pipe-read": "data in {}", "pipe-write": "room in {}", "fifo-open": "the other end of {}",
    "folio": "a page of {}", "buffer": "a block of {}", "io": "{}", "child": "{}", "threads": "{}",
    "socket": "{}", "fuse": "the daemon of {}", "nfs": "{}", "tty": "{}", "eventfd": "{}",
    "poll": "any of {}", "epoll": "any of {}", "signal": "{}", "timer": "{}", "inotify": "{}",
    "message": "{}", "io_uring": "{}", "sysv-sem": "{}", "fanotify": "a scanner's word on {}",
    "userfault": "{}", "memory": "{}", "journal": "{}", "writeback": "{}", "workqueue": "{}",
    "stopped": "{}", "freezer": "{} to be thawed", "freeze": "{} to be thawed",
    "vfork": "{}", "helper": "{}", "lease": "the lease of {} to be given back",
}  # fmt: skip
"""How to say that a task waits for something with a name, where that is no lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """A parameter of a frame's function, and where its value was found; "" value: not known.

    The value is what the function was called with; ``now``: what the parameter has become by now,
    for the function may have assigned to it.
    """

    name: str
    value: str
    source: str
    now: bool = field(default=False, metadata=ADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A call in progress. ``inlined`` are functions inlined at the place, innermost first."""

    function: str
    offset: str
    file: str | None = None
    line: int | None = None
    module: str | None = field(default=None, metadata=ADDED)
    inlined: tuple[str, ...] = field(default=(), metadata=ADDED)
    guessed: bool = field(default=False, metadata=ADDED)
    """Found as a likely return address on the stack, not by unwinding."""
    args: tuple[Argument, ...] = field(default=(), metadata=ADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFrame:
    """A call in progress in user space. ``function`` is "" where no symbol names it: then
    ``offset`` is one into ``object``, the mapped file."""

    address: str
    function: str
    offset: str
    object: str
    guessed: bool = field(default=False, metadata=ADDED)
    """Found by a frame pointer, which the program may use for something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task that the answer is about. ``seconds``: since it last ran; ``waits_for`` a wait's id.

    ``state`` is the letter of ps(1). ``args`` are those of the system call that it is in, hex.
    """

    tid: int
    comm: str
    state: str
    syscall: str | None
    args: tuple[str, ...]
    seconds: int | None
    stack: tuple[Frame, ...]
    waits_for: int | None
    pid: int | None = field(default=None, metadata=ADDED)
    decoded: tuple[str, ...] = field(default=(), metadata=ADDED)
    """``args`` in words where there are better ones, one for one, "" if none."""
    user: tuple[UserFrame, ...] = field(default=(), metadata=ADDED)
    """The stack in user space, innermost first, of tasks that the first findings name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Where a task took a lock that it still holds."""

    tid: int
    function: str
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What tasks wait for. ``proof`` says what in memory showed it; ``owners`` hold it.

    ``candidates`` may hold it; ``behind`` are waiters that have to go first.
    """

    id: int
    kind: str
    address: str
    name: str
    object: str
    waiters: tuple[int, ...]
    owners: tuple[int, ...]
    proof: str
    function: str | None = field(default=None, metadata=ADDED)
    known: Confidence | None = field(default=None, metadata=ADDED)
    """How the owners are known: read from the lock (observed), the only ones that fit (deduced)."""
    candidates: tuple[int, ...] = field(default=(), metadata=ADDED)
    behind: tuple[int, ...] = field(default=(), metadata=ADDED)
    note: str | None = field(default=None, metadata=ADDED)
    taken: tuple[Taken, ...] = field(default=(), metadata=ADDED)
    any_of: tuple[int, ...] = field(default=(), metadata=ADDED)
    """Processes any of which can end it: those with the other end of a pipe, the children."""
    complete: bool = field(default=False, metadata=ADDED)
    """Nobody but ``any_of`` can end it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """Where chains of waits end, and the tasks that wait for it in the end (``waiting``)."""

    kind: RootKind
    text: str
    tids: tuple[int, ...]
    waiting: tuple[int, ...]
    wait: int | None = None
    """The wait at the end of the chains, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One of several ways to read an ambiguous answer."""

    summary: str
    tids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer. ``cycles`` are proven deadlocks, each as tids: every one waits for the next."""

    summary: str
    confidence: Confidence
    kernel: KernelId
    evidence: Evidence
    tasks: tuple[Task, ...]
    waits: tuple[Wait, ...]
    cycles: tuple[tuple[int, ...], ...]
    candidates: tuple[Reading, ...] = ()
    schema: str = SCHEMA
    kind: Literal["hang"] = "hang"
    possible: tuple[tuple[int, ...], ...] = field(default=(), metadata=ADDED)
    """Cycles through a lock whose holder is likely but not recorded."""
    roots: tuple[Root, ...] = field(default=(), metadata=ADDED)

    def to_json(self) -> JSON:
        """The verdict as the JSON object of the schema."""
        return common.to_json(self)

    @classmethod
    def from_json(cls, data: JSON) -> "Verdict":
        """The verdict that ``data`` describes; raises InputError, see :func:`common.from_json`."""
        return common.from_json(cls, data)
