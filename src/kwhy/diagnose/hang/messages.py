"""Waiting for semaphores, messages, signals, time and events: nobody owns those."""

from collections.abc import Callable
from dataclasses import replace

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang import disks
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.locks import places
from kwhy.diagnose.hang.look import Look, claim
from kwhy.diagnose.hang.memory import kernel_pointer
from kwhy.diagnose.hang.stacks import Frame, Stack

_MAX_SEMAPHORES = 32000  # SEMMSL
_MAX_REFERENCES = 1 << 16  # of a System V object; more are none


def system_v(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """semop(2): which semaphore, and who changed it last."""
    m = look.memory
    call = look.user.arguments(stack)
    base = claim(stack, frame, "sysv-sem", 0, f"sleeping in {frame.name}")
    if call is None or not call[0].startswith("sem"):
        return base
    identity = call[1][0] & 0xFFFFFFFF
    base = replace(base, object=f"semaphore set {identity}", timed=bool(call[1][3]))
    if call[0] == "semop":
        base = replace(base, timed=False)
    queued = _queued(look, stack)
    array = _numbered(look, stack, "struct sem_array", "sem_perm", identity)
    if not queued or not array:
        return base
    blocking = m.value("struct sem_queue", queued, "blocking")
    number = int.from_bytes(m.read(blocking, 2), "little")
    change = int.from_bytes(m.read(blocking + 2, 2), "little", signed=True)
    if number >= m.value("struct sem_array", array, "sem_nsems"):
        return base
    one = array + m.offset("struct sem_array", "sems") + number * m.size("struct sem")
    value = m.value("struct sem", one, "semval")
    base = replace(
        base, address=one, object=f"semaphore {number} of set {identity}",
        proof="sem_queue on the stack", note=f"its value is {value}; {_wanted(change)}",
    )  # fmt: skip
    holders = () if value else _undoing(look, array, number)
    if change < 0 and holders:
        note = f"{base.note}; whoever took it has asked the kernel to give it back (SEM_UNDO)"
        alone = all(
            look.tasks.threads(look.tasks.by_address[task].tgid) == (task,) for task in holders
        )
        if not alone:  # any of its threads may give it back
            return replace(base, candidates=holders, note=note)
        return replace(base, owners=holders, sure="deduced", note=note)
    tid, last = _process(look, m.value("struct sem", one, "sempid"))
    if not tid or last == stack.task.address:
        return base
    if not last:
        note = f"{base.note}; semaphores have no owner, {tid} changed it last, and has ended"
        return replace(base, note=note)
    note = f"{base.note}; semaphores have no owner, {tid} changed it last"
    return replace(base, candidates=(last,), note=note)


def _process(look: Look, pid: int) -> tuple[int, int]:
    """(number, address of the task or 0 if it has ended) of a ``struct pid``; (0, 0) for none."""
    m = look.memory
    if not pid:
        return 0, 0
    node = m.u64(pid + m.offset("struct pid", "tasks"))
    task = look.tasks.by_address.get(node - m.offset("struct task_struct", "pid_links"))
    if task is not None:
        return task.tid, task.address
    first = pid + m.offset("struct pid", "numbers") + m.offset("struct upid", "nr")
    return int.from_bytes(m.read(first, 4), "little"), 0


def _undoing(look: Look, array: int, number: int) -> tuple[int, ...]:
    """Who took the semaphore so that the kernel gives it back when they end: ``semadj`` > 0."""
    m, kind = look.memory, "struct sem_undo"
    head = array + m.offset("struct sem_array", "list_id")
    lists, node = [], m.u64(head)
    for _ in range(_MAX_SEMAPHORES):
        if node == head or not m.linked(node):
            break
        undo = node - m.offset(kind, "list_id")
        array_at = undo + m.offset(kind, "semadj")
        if m.width(kind, "semadj") == 8:  # a pointer before 5.15
            array_at = m.u64(array_at)
        adjusted = m.read(array_at + 2 * number, 2)
        if int.from_bytes(adjusted, "little", signed=True) > 0:
            lists.append(m.value(kind, undo, "ulp"))
        node = m.u64(node)
    own = "sysvsem.undo_list"
    return tuple(
        task.address
        for task in (look.tasks.by_address.values() if lists else ())
        if task.tid == task.tgid and m.value("struct task_struct", task.address, own) in lists
    )


def system_v_message(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """msgsnd(2), msgrcv(2): which queue, how full it is, and who used it last."""
    m, kind = look.memory, "struct msg_queue"
    base = claim(stack, frame, "message", 0, f"sleeping in {frame.name}")
    call = look.user.arguments(stack)
    if call is None or not call[0].startswith("msg"):
        return base
    identity = call[1][0] & 0xFFFFFFFF
    base = replace(base, object=f"a message in queue {identity}")
    sends = call[0] == "msgsnd"
    if sends:
        base = replace(base, object=f"room in message queue {identity}")
    queue = _numbered(look, stack, kind, "q_perm", identity)
    if not queue:
        return base
    used, room, held = (m.value(kind, queue, at) for at in ("q_cbytes", "q_qbytes", "q_qnum"))
    tid, last = _process(look, m.value(kind, queue, "q_lrpid" if sends else "q_lspid"))
    who = f"{tid}{'' if last else ', which has ended,'}" if tid else "nobody"
    done = "received from it" if sends else "sent to it"
    note = (
        f"{held} messages of {used:,} bytes are in it, of {room:,} at most; {who} has {done} last"
    )
    if not tid:
        note = (
            f"{held} messages of {used:,} bytes are in it, of {room:,} at most; nobody has {done}"
        )
    return replace(base, address=queue, proof="its queue on the stack", note=note)


def _wanted(change: int) -> str:
    return "it waits for it to be 0" if not change else f"it wants to take {-change}"


def _queued(look: Look, stack: Stack) -> int:
    """The ``sem_queue`` on the stack that names the task and hangs in a list."""
    m, kind = look.memory, "struct sem_queue"
    for at in places(stack, stack.task.address):
        here = at - m.offset(kind, "sleeper")
        if m.linked(here + m.offset(kind, "list")):
            return here
    return 0


def _numbered(look: Look, stack: Stack, kind: str, head: str, identity: int) -> int:
    """The System V object of that number, among what the stack points to; 0 for none."""
    m = look.memory
    for word in dict.fromkeys(stack.words):
        if not kernel_pointer(word) or word & 63 or stack.task.on_stack(word):
            continue
        try:
            same = m.value(kind, word, f"{head}.id") == identity
            used = m.value(kind, word, f"{head}.refcount") if same else 0
            if 0 < used <= _MAX_REFERENCES and not m.value(kind, word, f"{head}.deleted"):
                return word
        except (MissingMemory, LookupError):
            continue
    return 0


def posix_message(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """mq_timedsend(3), mq_timedreceive(3): the queue is named by its descriptor."""
    base = claim(stack, frame, "message", 0, f"sleeping in {frame.name}")
    call = look.user.arguments(stack)
    if call is None or not call[0].startswith("mq_timed"):
        return base
    note = "it is full" if call[0] == "mq_timedsend" else "it is empty"
    return replace(base, note=note, timed=bool(call[1][4]))


def key(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """A key that somebody else has asked for is waited for until it is made."""
    base = disks.bit(look, stack, frame)
    if base is None:
        return None
    made = base.address - look.memory.offset("struct key", "flags")
    name = look.memory.string(look.memory.value("struct key", made, "description"))
    note = "somebody has asked for it first, and it is being made"
    return replace(base, object=f"key {name}", note=note)


def told(kind: str, note: str) -> Callable[[Look, Stack, Frame], Claim | None]:
    """A wait of which only the kind is known."""

    def prove(look: Look, stack: Stack, frame: Frame) -> Claim | None:
        base = claim(stack, frame, kind, 0, f"sleeping in {frame.name}")
        found = look.locks.wait_queue(stack)
        if found is not None:
            base = replace(base, address=look.queue(stack), proof="on a wait queue")
        return replace(base, note=note)

    return prove
