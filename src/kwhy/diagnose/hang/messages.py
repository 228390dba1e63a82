"""Waiting for semaphores, messages, signals, time and events: nobody owns those."""

from collections.abc import Callable
from dataclasses import replace

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.locks import places
from kwhy.diagnose.hang.look import Look, claim
from kwhy.diagnose.hang.memory import kernel_pointer
from kwhy.diagnose.hang.stacks import Frame, Stack

_MAX_SEMAPHORES = 32000  # SEMMSL


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
    array = _array(look, stack, identity)
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
    pid = m.value("struct sem", one, "sempid")
    node = m.u64(pid + m.offset("struct pid", "tasks")) if pid else 0
    last = node - m.offset("struct task_struct", "pid_links") if node else 0
    task = look.tasks.by_address.get(last)
    if task is None or task.address == stack.task.address:
        return base
    note = f"{base.note}; semaphores have no owner, {task.tid} changed it last"
    return replace(base, candidates=(last,), note=note)


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


def _array(look: Look, stack: Stack, identity: int) -> int:
    """The ``sem_array`` of that number, among what the stack points to."""
    m, kind = look.memory, "struct sem_array"
    for word in dict.fromkeys(stack.words):
        if not kernel_pointer(word) or word & 63:
            continue
        try:
            same = m.value(kind, word, "sem_perm.id") == identity
            size = m.value(kind, word, "sem_nsems") if same else 0
            if 0 < size <= _MAX_SEMAPHORES and not m.value(kind, word, "sem_perm.deleted"):
                return word
        except (MissingMemory, LookupError):
            continue
    return 0


def told(kind: str, note: str) -> Callable[[Look, Stack, Frame], Claim | None]:
    """A wait of which only the kind is known."""

    def prove(look: Look, stack: Stack, frame: Frame) -> Claim | None:
        base = claim(stack, frame, kind, 0, f"sleeping in {frame.name}")
        found = look.locks.wait_queue(stack)
        if found is not None:
            base = replace(base, address=look.queue(stack), proof="on a wait queue")
        return replace(base, note=note)

    return prove
