"""Futexes: what the C library keeps around the word that a task sleeps on, and who has that.

A futex is a word of user memory; for the kernel nobody owns it, but for those with priority
inheritance. glibc writes the owner beside it: into a mutex, and into a read/write lock for a
writer. Whoever joins a thread sleeps on the word that the kernel clears when that thread ends.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.look import Look, claim
from kwhy.diagnose.hang.memory import kernel_pointer
from kwhy.diagnose.hang.stacks import Frame, Stack
from kwhy.diagnose.hang.tasks import Task

_PI_COMMANDS = frozenset({6, 8, 11, 13})  # LOCK_PI, TRYLOCK_PI, WAIT_REQUEUE_PI, LOCK_PI2
_FUTEX_COMMAND, _PRIVATE = 0x7F, 0x80
_WAITERS, _TID = 1 << 31, (1 << 30) - 1  # FUTEX_WAITERS, FUTEX_TID_MASK
_MAX_NUMBER = 1 << 22  # PID_MAX_LIMIT

_CONTENDED = 2  # glibc: lowlevellock.h
_TYPE, _RECURSIVE = 3, 1
_KINDS, _ROBUST, _SHARED = 0x1FF, 0x10, 0x80  # glibc: pthread_mutex_t.__kind
_MAX_USERS = 1 << 16
_PHASE, _LOCKED, _READERS = 1, 2, 3  # glibc: pthread_rwlock_common.c; readers are counted above
_RWLOCK_WORDS = 13
_DEEP = 64  # generations of processes
_MAX_LEVELS = 33  # MAX_PID_NS_LEVEL and the first


@dataclass(frozen=True, slots=True)
class _Kept:
    """What glibc keeps around a word, and where that begins.

    ``owner`` is a thread's number, 0 if none is written.
    """

    what: str
    address: int
    owner: int
    shared: bool
    note: str = ""


def futex(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """A futex: for PI the kernel has its owner; for others what is around the word may tell."""
    arguments = look.user.arguments(stack)
    if arguments is None or arguments[0] != "futex":
        return claim(stack, frame, "futex", 0, "sleeping in futex_wait")
    address, operation = arguments[1][:2]
    key = _key(look, stack)
    base = replace(
        claim(stack, frame, "futex", address, "sleeping in futex_wait"), extra=key,
        timed=bool(arguments[1][3]), object="futex",
    )  # fmt: skip
    if key:
        base = replace(base, proof="queued on the futex")
    if operation & _FUTEX_COMMAND in _PI_COMMANDS:
        found = look.locks.inherited(replace(base, proof="task->pi_blocked_on"))
        note = "it waits for a condition; who will signal that is not recorded"
        return found[1] if found is not None else replace(base, note=note)
    joined = _joined(look, base, stack.task)
    if joined is not None:
        return joined
    word = look.user.words(stack.task, address, 4)
    if word is None:
        return replace(base, note="the futex word cannot be read")
    stream = _stream(look, base, stack.task)
    if stream is not None:
        return stream
    kept = _mutex(look, stack.task, address) or _rwlock(look, stack.task, address)
    owned = None
    if kept is not None and kept.shared != bool(operation & _PRIVATE):
        owned = _owned(look, base, stack.task, kept)
    if owned is not None:
        return owned
    return replace(base, note=f"its word is {word[0]}; who will wake it is not recorded")


def _mutex(look: Look, task: Task, address: int) -> _Kept | None:
    """pthread_mutex_t is {lock, count, owner, users, kind, spins}, ints, and a list."""
    words = look.user.words(task, address, 40)
    if words is None:
        return None
    lock, count, owner, users, kind, _spins, *chain = words
    if not kind & _ROBUST and (any(chain) or (count and kind & _TYPE != _RECURSIVE)):
        return None
    if not 0 < users < _MAX_USERS or kind & ~_KINDS or not 0 < owner <= _MAX_NUMBER:
        return None
    if lock & _TID != owner or not lock & _WAITERS if kind & _ROBUST else lock != _CONTENDED:
        return None
    return _Kept("pthread mutex", address, owner, bool(kind & _SHARED))


def _rwlock(look: Look, task: Task, address: int) -> _Kept | None:
    """pthread_rwlock_t is {readers, writers, wrphase_futex, writers_futex, ...}, ints."""
    for at in (8, 12):
        words = look.user.words(task, address - at, 4 * _RWLOCK_WORDS)
        if words is None:
            continue
        readers, writers, phase, futex, pad3, pad4, writer, shared, *rest, flags = words
        if max(phase, futex) > _READERS or shared > 1 or flags > _LOCKED or any((pad3, pad4)):
            continue
        if any(rest) or not readers or writers >> 16 or not words[at // 4] & _LOCKED:
            continue
        if writer and readers & _LOCKED and writer <= _MAX_NUMBER:
            return _Kept("pthread rwlock", address - at, writer, bool(shared))
        if not writer and not readers & _PHASE and readers >> _READERS:
            count = readers >> _READERS
            who = "1 reader holds it" if count == 1 else f"{count} readers hold it"
            note = f"{who}; the C library does not record which"
            return _Kept("pthread rwlock", address - at, 0, bool(shared), note)
    return None


def _owned(look: Look, base: Claim, task: Task, kept: _Kept) -> Claim | None:
    """``base`` with the owner that glibc wrote; one that is gone has never released the lock.

    None where the owner makes no sense: other things than locks may look like one.
    """
    base = replace(base, object=kept.what, extra=(*base.extra, ("lock", kept.address)))
    if not kept.owner:
        return replace(base, note=kept.note)
    holder = _numbered(look, task, kept.owner)
    if holder is not None and holder.state not in "ZX":
        if _shares(look, task, holder, kept):
            note = "the owner is what the C library wrote beside the futex word"
            return replace(base, owners=(holder.address,), sure="deduced", note=note)
        if kept.shared or not _forebear(look, task, holder):
            return None
        note = (
            f"its owner, thread {kept.owner}, is not of this process: the lock was copied by "
            "fork(2) while it was held, and nobody can release the copy"
        )
    else:
        other = _elsewhere(look, kept.owner) if kept.shared else kept.owner < _own(look, task)[1]
        if other:
            return None
        note = f"its owner, thread {kept.owner}, ended without releasing the lock"
    return replace(base, note=note, sure="deduced", extra=(*base.extra, ("gone", kept.owner)))


def _forebear(look: Look, task: Task, other: Task) -> bool:
    """Whether ``other`` is of the process that ``task``'s was forked from, or of one before.

    Everybody comes from the first process: that counts as a parent only.
    """
    here = task.parent
    for _ in range(_DEEP):
        parent = look.tasks.by_address.get(here)
        if parent is None or not parent.mm:
            return False
        if parent.tgid == other.tgid:
            return parent.tgid != 1 or here == task.parent
        here = parent.parent
    return False


def _shares(look: Look, task: Task, holder: Task, kept: _Kept) -> bool:
    """Whether ``holder`` can have the lock that ``task`` waits for."""
    if holder.mm == task.mm:
        return True
    return kept.shared and bool(holder.mm) and _own(look, task)[0] == _own(look, holder)[0]


def _stream(look: Look, base: Claim, task: Task) -> Claim | None:
    """The lock of a stdio stream is {int lock, count; pthread_t owner}, where the owner's FS is."""
    m, kind = look.memory, "struct task_struct"
    words = look.user.words(task, base.address, 16)
    if words is None or words[0] != _CONTENDED or not words[1] or not m.has(kind, "thread.fsbase"):
        return None
    owner = words[3] << 32 | words[2]
    for thread in look.tasks.threads(task.tgid) if owner else ():
        if m.value(kind, thread, "thread.fsbase") == owner:
            return replace(
                base, owners=(thread,), sure="deduced",
                object="stdio stream lock",
                note="the owner is what the C library wrote beside the futex word",
            )  # fmt: skip
    return None


def _joined(look: Look, base: Claim, task: Task) -> Claim | None:
    """pthread_join(3): the word is the one that the kernel clears when a thread ends."""
    m, kind = look.memory, "struct task_struct"
    if ("joined", task.tgid) not in look.cache:
        look.cache["joined", task.tgid] = {
            m.value(kind, thread, "clear_child_tid"): thread
            for thread in look.tasks.threads(task.tgid)
        }
    thread = look.cache["joined", task.tgid].get(base.address)
    if thread is None or thread == task.address:
        return None
    joined = look.tasks.by_address[thread]
    return replace(
        base, kind="threads", owners=(thread,), sure="observed", extra=(),
        object=f"the end of thread {joined.tid} ({joined.comm})",
        proof="the thread's clear_child_tid",
    )  # fmt: skip


def _key(look: Look, stack: Stack) -> tuple[tuple[str, int], ...]:
    """What the kernel knows the futex by, from the ``futex_q`` on the stack that is queued.

    The memory map and address of a private one, the inode's number and offset of a shared one.
    """
    m = look.memory
    at, lock_at = m.offset("struct futex_q", "task"), m.offset("struct futex_q", "lock_ptr")
    node = m.offset("struct futex_q", "list.node_list")
    for index, word in enumerate(stack.words):
        queued = stack.task.sp + 8 * index - at
        if word != stack.task.address or not m.linked(queued + node):
            continue
        try:
            if kernel_pointer(m.u64(queued + lock_at)):
                parts = ("ptr", "word", "offset")
                return tuple(
                    (f"futex {part}", m.value("struct futex_q", queued, f"key.both.{part}"))
                    for part in parts
                )
        except MissingMemory:
            continue
    return ()


# -- numbers of threads, which differ between PID namespaces ---------------------------------------


def _numbered(look: Look, near: Task, number: int) -> Task | None:
    """The thread that has ``number`` where ``near`` runs, in its PID namespace."""
    space, _own_number = _own(look, near)
    if space == look.memory.symbol("init_pid_ns"):
        return look.tasks.by_tid.get(number)
    if ("numbers", space) not in look.cache:
        everybody = _numbers(look, (t for t in look.tasks.by_address.values() if t.mm))
        look.cache["numbers", space] = {
            inner: task for task, names in everybody for where, inner in names if where == space
        }
    found: Task | None = look.cache["numbers", space].get(number)
    return found


def _elsewhere(look: Look, number: int) -> bool:
    """Whether a thread in any PID namespace calls itself ``number``."""
    users = (task for task in look.tasks.by_address.values() if task.mm)
    return any(names[-1][1] == number for _task, names in _numbers(look, users))


def _own(look: Look, task: Task) -> tuple[int, int]:
    """(PID namespace, number in it) as the task knows itself; raises LookupError."""
    found = _numbers(look, (task,))
    if not found:
        raise LookupError("the task has no number")
    return found[0][1][-1]


def _numbers(look: Look, tasks: Iterable[Task]) -> list[tuple[Task, tuple[tuple[int, int], ...]]]:
    """The (PID namespace, number) of each task, from the outermost to its own."""
    m, kind = look.memory, "struct pid"
    pid_at = m.offset("struct task_struct", "thread_pid")
    first, step = m.offset(kind, "numbers"), m.size("struct upid")
    number_at, space_at = m.offset("struct upid", "nr"), m.offset("struct upid", "ns")
    known: dict[int, tuple[tuple[int, int], ...]] = look.cache.setdefault("pid numbers", {})
    wanted = list(tasks)
    new = [task for task in wanted if task.address not in known]
    m.evidence.prefetch((task.address + pid_at, 8) for task in new)
    for task in new:
        try:
            pid = m.u64(task.address + pid_at)
            levels = range(m.value(kind, pid, "level") + 1)
            raw = m.read(pid + first, step * len(levels)) if len(levels) <= _MAX_LEVELS else b""
        except MissingMemory:
            continue
        places = range(0, len(raw), step)
        known[task.address] = tuple(
            (
                int.from_bytes(raw[at + space_at : at + space_at + 8], "little"),
                int.from_bytes(raw[at + number_at : at + number_at + 4], "little"),
            )
            for at in places
        )
    return [(task, known[task.address]) for task in wanted if known.get(task.address)]
