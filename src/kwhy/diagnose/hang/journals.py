"""Waiting for the kernel's own threads: journals, writeback, grace periods."""

from dataclasses import replace

from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.look import Look, claim
from kwhy.diagnose.hang.stacks import Frame, Stack
from kwhy.diagnose.hang.workers import working

_LIST = 1024
_QUEUES = ("j_wait_done_commit", "j_wait_transaction_locked", "j_wait_commit", "j_wait_reserved")


def journal(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """A commit of an ext4 (jbd2) journal: the journal's own thread makes it."""
    m = look.memory
    queue = look.queue(stack)
    for path in _QUEUES:
        here = look.inside(queue, "struct journal_s", path)
        thread = m.value("struct journal_s", here, "j_task")
        if thread not in look.tasks.by_address or thread == stack.task.address:
            continue
        base = claim(stack, frame, "journal", here, f"on the journal's {path}")
        name = m.text("struct journal_s", here, "j_devname")
        return replace(base, owners=(thread,), sure="observed", object=f"journal {name}")
    return None


def journal_updates(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """The journal's thread waits until all who change something in the transaction are done."""
    m = look.memory
    journal = look.inside(look.queue(stack), "struct journal_s", "j_wait_updates")
    if m.value("struct journal_s", journal, "j_task") != stack.task.address:
        return None
    transaction = m.value("struct journal_s", journal, "j_committing_transaction")
    base = claim(stack, frame, "journal", journal, "on the journal's j_wait_updates")
    base = replace(base, object=f"journal {m.text('struct journal_s', journal, 'j_devname')}")
    holders = []
    for task in look.tasks.by_address.values():
        handle = m.value("struct task_struct", task.address, "journal_info")
        kind = "struct jbd2_journal_handle"
        if handle and m.value(kind, handle, "h_transaction") == transaction:
            holders.append(task.address)
    return replace(base, owners=tuple(holders), sure="observed" if holders else "unknown")


def writeback(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """sync(2) and its kin: the worker that writes the device's dirty pages."""
    m = look.memory
    device = look.inside(look.queue(stack), "struct backing_dev_info", "wb_waitq")
    base = claim(stack, frame, "writeback", device, "on the device's wb_waitq")
    name = m.text("struct backing_dev_info", device, "dev_name")
    base = replace(base, object=f"dirty pages of device {name}")
    at = m.offset("struct bdi_writeback", "dwork.work")
    workers = tuple(
        worker.task
        for worker in working(look)
        if worker.function == "wb_workfn"
        and m.value("struct bdi_writeback", worker.work - at, "bdi") == device
    )
    if not workers:
        return base
    return replace(base, any_of=workers, sure="deduced", complete=len(workers) == 1)


def grace_period(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """synchronize_rcu(): the tasks, or processors, that hold up the present grace period."""
    m = look.memory
    base = claim(stack, frame, "rcu", 0, f"sleeping in {frame.name}")
    if look.locks.completion(stack, frame) is None or "srcu" in frame.name:
        return replace(base, note="who reads is not recorded" if "srcu" in frame.name else "")
    state = m.symbol("rcu_state")
    kind = "struct rcu_node"
    readers: list[int] = []
    cpus: list[int] = []
    size = m.size(kind)
    for number in range(m.width("struct rcu_state", "node") // size):
        node = state + m.offset("struct rcu_state", "node") + number * size
        low = m.value(kind, node, "grplo")
        for bit in range(m.value(kind, node, "grphi") - low + 1):
            if (
                m.value(kind, node, "level") == _leaf(look)
                and m.value(kind, node, "qsmask") >> bit & 1
            ):
                cpus.append(low + bit)
        if m.has(kind, "gp_tasks"):
            readers += _readers(look, node)
    if readers:
        tids = [look.tasks.by_address[reader].tid for reader in readers]
        note = f"readers that were interrupted hold up the grace period: {tids}"
        return replace(
            base, owners=tuple(readers), sure="observed", note=note,
            proof="on rcu_node->blkd_tasks, from gp_tasks on",
        )  # fmt: skip
    if cpus:
        shown = ", ".join(map(str, cpus[:8]))
        return replace(base, note=f"processors that have not passed a quiescent state: {shown}")
    return base


def _leaf(look: Look) -> int:
    """The lowest level of the tree of ``rcu_node``."""
    if "rcu leaf" not in look.cache:
        m, kind = look.memory, "struct rcu_node"
        state = m.symbol("rcu_state") + m.offset("struct rcu_state", "node")
        size = m.size(kind)
        count = m.width("struct rcu_state", "node") // size
        look.cache["rcu leaf"] = max(m.value(kind, state + n * size, "level") for n in range(count))
    level = look.cache["rcu leaf"]
    assert isinstance(level, int)
    return level


def _readers(look: Look, node: int) -> list[int]:
    """Tasks that were preempted in a read-side section and block the present grace period."""
    m, kind = look.memory, "struct rcu_node"
    found: list[int] = []
    here = m.value(kind, node, "gp_tasks")
    head = node + m.offset(kind, "blkd_tasks")
    inside = m.offset("struct task_struct", "rcu_node_entry")
    while here and here != head and len(found) < _LIST:
        if here - inside not in look.tasks.by_address or m.u64(m.u64(here) + 8) != here:
            return []
        found.append(here - inside)
        here = m.u64(here)
    return found
