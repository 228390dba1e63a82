"""Who has the file lock that a task asks for: flock(2), fcntl(2) locks, leases.

A request that conflicts with a request which has to wait itself is queued beneath that one
(__locks_insert_block() of fs/locks.c): the requests for a lock are a tree, and the lock that
somebody has is its root. Every request of the tree conflicts with the root too.
"""

from dataclasses import replace

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.look import Look, claim
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.stacks import Frame, Stack

_WRITE = 1  # F_WRLCK
_LOCKS = 1024  # of a file that are looked at
_FLOCK, _LEASES = 2, 4 | 32 | 2048  # FL_FLOCK; FL_DELEG, FL_LEASE, FL_LAYOUT: linux/filelock.h


def file_lock(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """A request that is queued for a lock: the lock at the root says who has it."""
    m = look.memory
    core, prefix = _layout(m)
    request = look.queue(stack) - m.offset(core, f"{prefix}wait")
    lock = root(m, request, look.cache.setdefault("file locks", {}))
    if not lock or lock == request:
        return None
    file = m.value(core, lock, f"{prefix}file")
    above = m.value(core, request, f"{prefix}blocker")
    base = replace(
        claim(stack, frame, _kind(m, lock), lock, "file_lock->fl_blocker"), extra=(("file", file),),
        behind=_asking(m, look, above) if above != lock else (),
    )  # fmt: skip
    whose = [_holder(look, base, one) for one in _conflicting(m, request, lock)]
    owners = tuple(dict.fromkeys(owner for one in whose for owner in one.owners))
    known = {one.sure for one in whose}
    return replace(
        base, owners=owners, note=next((one.note for one in whose if one.note), ""),
        candidates=tuple(dict.fromkeys(task for one in whose for task in one.candidates)),
        sure="observed" if known == {"observed"} else "deduced" if owners else "unknown",
    )  # fmt: skip


def _kind(m: Memory, lock: int) -> str:
    core, prefix = _layout(m)
    flags = m.value(core, lock, f"{prefix}flags")
    if flags & _LEASES:
        return "lease"
    if flags & _FLOCK:
        return "flock"
    opened = m.value(core, lock, f"{prefix}owner") == m.value(core, lock, f"{prefix}file")
    return "ofd-lock" if opened else "posix-lock"


def _holder(look: Look, base: Claim, lock: int) -> Claim:
    """``base`` with those who have one ``lock``."""
    m = look.memory
    core, prefix = _layout(m)
    file = m.value(core, lock, f"{prefix}file")
    kind = _kind(m, lock)
    if kind == "posix-lock":
        owners = look.tasks.sharing_files(m.value(core, lock, f"{prefix}owner"))
        return replace(base, owners=owners, sure="observed" if owners else "unknown")
    taker = look.tasks.by_tid.get(m.value(core, lock, f"{prefix}pid"))
    users = look.ends.file(file).tasks
    if kind != "ofd-lock" and taker is not None and taker.address in users:
        base = replace(base, owners=(taker.address,), sure="observed")
        others = len(look.processes(users)) - 1
        if others:
            who = "another process" if others == 1 else f"{others} other processes"
            note = f"{who} inherited the locked file, and could unlock it as well"
            return replace(base, sure="deduced", note=note)
        return base
    return _opened(look, base, file)


def _conflicting(m: Memory, request: int, lock: int) -> tuple[int, ...]:
    """All locks of the file that a request has to wait for; ``lock`` is the first it met."""
    core, prefix = _layout(m)
    kind = _kind(m, lock)
    if kind == "lease":
        return (lock,)
    inode = m.value("struct file", m.value(core, lock, f"{prefix}file"), "f_inode")
    context = m.value("struct inode", inode, "i_flctx")
    which = "flc_flock" if kind == "flock" else "flc_posix"
    head = context + m.offset("struct file_lock_context", which)
    held = m.offset(core, f"{prefix}list")
    found: list[int] = []
    before, node = head, m.u64(head)
    for _ in range(_LOCKS):
        if node == head or m.u64(node + 8) != before:
            break
        if _conflict(m, request, node - held, kind):
            found.append(node - held)
        before, node = node, m.u64(node)
    return tuple(found) if lock in found else (lock,)


def _conflict(m: Memory, request: int, lock: int, kind: str) -> bool:
    """flock_locks_conflict(), posix_locks_conflict() of fs/locks.c."""
    core, prefix = _layout(m)
    whose = f"{prefix}file" if kind == "flock" else f"{prefix}owner"
    if m.value(core, request, whose) == m.value(core, lock, whose):
        return False
    if kind != "flock":
        (start, end), (first, last) = (
            (
                m.value("struct file_lock", one, "fl_start"),
                m.value("struct file_lock", one, "fl_end"),
            )
            for one in (request, lock)
        )
        if end < first or last < start:
            return False
    return _WRITE in (m.value(core, one, f"{prefix}type") for one in (request, lock))


def _layout(m: Memory) -> tuple[str, str]:
    """(the structure, the prefix of its fields): a part of its own since 6.9."""
    core = "struct file_lock_core"
    return (core, "flc_") if m.type(core) is not None else ("struct file_lock", "fl_")


def root(m: Memory, request: int, known: dict[int, int]) -> int:
    """The lock that a request waits for; 0 where the tree is torn or changes just now.

    ``known`` are the roots that were found before, by request.
    """
    core, prefix = _layout(m)
    member, held = m.offset(core, f"{prefix}blocked_member"), m.offset(core, f"{prefix}list")
    way: dict[int, None] = {}
    here = request
    while here not in known:
        if here in way:
            known[here] = 0
            break
        way[here] = None
        above = m.value(core, here, f"{prefix}blocker")
        if not above:
            known[here] = here if _queued(m, here + held) else 0
        elif not _queued(m, here + member):
            known[here] = 0
        else:
            here = above
    known.update(dict.fromkeys(way, known[here]))
    return known[request]


def _queued(m: Memory, node: int) -> bool:
    """Whether a ``struct list_head`` hangs in a list beside others."""
    return m.linked(node) and m.u64(node) != node


def _asking(m: Memory, look: Look, request: int) -> tuple[int, ...]:
    """The task that sleeps until ``request`` is answered; requests of a file server have none."""
    core, prefix = _layout(m)
    try:
        first = m.u64(request + m.offset(core, f"{prefix}wait.head"))
        entry = first - m.offset("struct wait_queue_entry", "entry")
        task = look.tasks.by_address.get(m.value("struct wait_queue_entry", entry, "private"))
    except MissingMemory:
        return ()
    return (task.address,) if task is not None and task.on_stack(entry) else ()


def _opened(look: Look, base: Claim, file: int) -> Claim:
    """A lock that belongs to an open file, whoever uses that."""
    users = [look.tasks.by_address[task] for task in look.ends.file(file).tasks]
    leaders = tuple(task.address for task in users if task.tid == task.tgid)
    if len(leaders) == 1:
        note = "the only process that still has the locked file open"
        return replace(base, owners=leaders, sure="deduced", note=note)
    return replace(base, candidates=leaders, note="who locked it has closed the file or ended")
