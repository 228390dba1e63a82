"""The kernel's workers: what each runs, and who waits for a work item to be done."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.look import Look
from kwhy.diagnose.hang.stacks import Frame, Stack

_PF_WQ_WORKER = 0x20
_MAX_QUEUED = 4096


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker in the middle of a work item. Addresses; ``function`` is the item's, ``pool`` the
    pool_workqueue through which it came from the queue."""

    task: int
    worker: int
    work: int
    function: str
    queue: int
    pool: int


def working(look: Look) -> tuple[Worker, ...]:
    """The workers that have something to do."""
    if "workers" not in look.cache:
        look.cache["workers"] = tuple(_working(look))
    found: tuple[Worker, ...] = look.cache["workers"]
    return found


def _working(look: Look) -> Iterator[Worker]:
    m = look.memory
    own = "worker_private" if m.has("struct task_struct", "worker_private") else "set_child_tid"
    for task in look.tasks.by_address.values():
        try:
            if not task.kthread:
                continue
            if not m.value("struct task_struct", task.address, "flags") & _PF_WQ_WORKER:
                continue
            thread = m.value("struct task_struct", task.address, own)
            worker = m.value("struct kthread", thread, "data")
            if m.value("struct worker", worker, "task") != task.address:
                continue
            work = m.value("struct worker", worker, "current_work")
            if not work:
                continue
            symbol = m.kernel.symbols.at(m.value("struct worker", worker, "current_func"))
            pool = m.value("struct worker", worker, "current_pwq")
            queue = m.value("struct pool_workqueue", pool, "wq") if pool else 0
            yield Worker(task.address, worker, work, symbol.name if symbol else "", queue, pool)
        except (MissingMemory, LookupError):
            continue


def helper(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """call_usermodehelper_exec(): the worker that has started the program waits for its end."""
    m, kind = look.memory, "struct subprocess_info"
    base = look.locks.completion(stack, frame)
    if base is None:
        return None
    for worker in working(look):
        here = worker.work - m.offset(kind, "work")
        if worker.function != "call_usermodehelper_exec_work":
            continue
        if m.value(kind, here, "complete") == base.address:
            return replace(
                base, kind="helper", owners=(worker.task,), sure="observed",
                proof="subprocess_info->complete of the worker's item",
                object=f"the end of {m.string(m.value(kind, here, 'path'))}, started by the kernel",
            )  # fmt: skip
    return base


def flush(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """flush_work() and its kin: the barrier on the stack hangs behind the work waited for."""
    m = look.memory
    base = look.locks.completion(stack, frame)
    if base is None:
        return None
    base = replace(base, kind="workqueue")
    barrier = base.address - m.offset("struct wq_barrier", "done")
    if not stack.task.on_stack(barrier):
        return base
    if m.value("struct wq_barrier", barrier, "task") != stack.task.address:
        return base
    node = barrier + m.offset("struct wq_barrier", "work.entry")
    heads = {
        worker.worker + m.offset("struct worker", "scheduled"): worker for worker in working(look)
    }
    here, before = m.u64(node + 8), node
    for _ in range(_MAX_QUEUED):
        if here in heads:
            worker = heads[here]
            return replace(
                base, owners=(worker.task,), sure="observed", object=f"work {worker.function}()",
                proof="its barrier is queued behind the worker's work",
            )  # fmt: skip
        if m.u64(here) != before:
            break
        here, before = m.u64(here + 8), here
    work = m.u64(node + 8) - m.offset("struct work_struct", "entry")
    symbol = m.kernel.symbols.at(m.value("struct work_struct", work, "func"))
    if symbol is None or not symbol.code or symbol.name == "wq_barrier_func":
        return base
    note = "the work is queued, and no worker has begun it"
    return replace(base, object=f"work {symbol.name}()", note=note)


def flush_all(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """flush_workqueue(): everything that was queued before has to end."""
    m = look.memory
    base = look.locks.completion(stack, frame)
    if base is None:
        return None
    base = replace(base, kind="workqueue")
    flusher = base.address - m.offset("struct wq_flusher", "done")
    if not stack.task.on_stack(flusher):
        return base
    color = m.value("struct wq_flusher", flusher, "flush_color")
    queues = {
        worker.queue
        for worker in working(look)
        if worker.queue
        and (m.value("struct workqueue_struct", worker.queue, "first_flusher") == flusher)
    }
    if len(queues) != 1:
        return base
    (queue,) = queues
    mine = tuple(
        worker.task
        for worker in working(look)
        if worker.queue == queue and _is_of(look, worker, color)
    )
    name = m.text("struct workqueue_struct", queue, "name")
    return replace(
        base, owners=mine, sure="observed" if mine else "unknown", object=f"workqueue {name}",
        proof="the workqueue's first_flusher",
    )  # fmt: skip


def _is_of(look: Look, worker: Worker, color: int) -> bool:
    """Whether a worker's item is of a flush color.

    Before 5.18 a worker does not keep it; but where nothing of another color is in flight it has to
    be this one (pool_workqueue.nr_in_flight, kernel/workqueue.c).
    """
    m = look.memory
    if m.has("struct worker", "current_color"):
        return m.value("struct worker", worker.worker, "current_color") == color
    start = worker.pool + m.offset("struct pool_workqueue", "nr_in_flight")
    raw = m.read(start, m.width("struct pool_workqueue", "nr_in_flight"))
    return [number for number in range(len(raw) // 4) if any(raw[4 * number :][:4])] == [color]
