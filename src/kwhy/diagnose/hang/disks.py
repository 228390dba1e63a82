"""What lies behind a page, a buffer or a bio: the device and its requests, or the server."""

from collections.abc import Iterator
from dataclasses import replace

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.channels import fuse_page
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.look import Look, claim, ended_by
from kwhy.diagnose.hang.memory import kernel_pointer
from kwhy.diagnose.hang.stacks import Frame, Stack
from kwhy.diagnose.hang.workers import working

FROZEN = "somebody has frozen the file system; it goes on when that is undone (fsfreeze --unfreeze)"
"""What is known of who freezes a file system by ioctl FIFREEZE: nothing."""

_IN_FLIGHT = 1  # MQ_RQ_IN_FLIGHT
_SUSPENDED = 3  # DMF_BLOCK_IO_FOR_SUSPEND, DMF_SUSPENDED of drivers/md/dm.c
_MAX_TAGS, _MAX_QUEUES = 4096, 256
_OPERATIONS = {
    0: "read",
    1: "write",
    2: "flush",
    3: "discard",
    5: "secure erase",
    9: "write zeroes",
}
_NETWORKED = frozenset({"nfs", "nfs4"})


def folio(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """A bit of a page, and the device or the server that its file lies on."""
    m = look.memory
    found = look.locks.wait_queue(stack)
    if found is None:
        return claim(stack, frame, "folio", 0, f"sleeping in {frame.name}")
    queue = "struct wait_page_queue"
    page = m.first(queue, "folio", "page")
    address = m.value(queue, found[0] - m.offset(queue, "wait"), page)
    base = claim(stack, frame, "folio", address, "on the page's wait queue")
    mapping = m.value("struct page", address, "mapping")
    if not mapping or mapping & 3:
        return base
    host = m.value("struct address_space", mapping, "host")
    try:
        return _of_inode(look, base, host)
    except (MissingMemory, LookupError):
        return base


def _of_inode(look: Look, base: Claim, inode: int) -> Claim:
    m = look.memory
    block = m.value("struct inode", inode, "i_sb")
    kind = _file_system(look, block)
    if kind == "bdev":
        device = inode - m.offset("struct bdev_inode", "vfs_inode")
        disk = m.value("struct block_device", device, "bd_disk")
        name = m.text("struct gendisk", disk, "disk_name")
        return on_device(look, replace(base, object=f"block device {name}"), device)
    if kind.startswith("fuse"):
        return ended_by(base, look, fuse_page(look, block), only=False)
    if kind in _NETWORKED:
        server = m.value("struct super_block", block, "s_fs_info")
        client = m.value("struct nfs_server", server, "client")
        return replace(base, note=f"on the server {_server(look, client)}", sure="deduced")
    return on_device(look, base, m.value("struct super_block", block, "s_bdev"))


def _file_system(look: Look, block: int) -> str:
    m = look.memory
    kind = m.value("struct super_block", block, "s_type")
    return m.string(m.value("struct file_system_type", kind, "name"), 32)


def buffer(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """A bit of a buffer head, and the device that it belongs to."""
    word = waited_word(look, stack)
    if not word:
        return None
    head = word - look.memory.offset("struct buffer_head", "b_state")
    base = claim(stack, frame, "buffer", head, "on the queue of its b_state")
    return on_device(look, base, look.memory.value("struct buffer_head", head, "b_bdev"))


def waited_word(look: Look, stack: Stack) -> int:
    """The word whose bit is waited for, by the entry on the stack; 0 if there is none."""
    m = look.memory
    found = look.locks.wait_queue(stack)
    entry = "struct wait_bit_queue_entry"
    if found is None or not m.has(entry, "wq_entry"):
        return 0
    return m.value(entry, found[0] - m.offset(entry, "wq_entry"), "key.flags")


def bit(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """A bit of some structure: the word that it lies in."""
    word = waited_word(look, stack)
    return claim(stack, frame, "bit", word, "on the queue of its word") if word else None


def bio(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """submit_bio_wait() and its kin: the bio that has the completion as its private data."""
    m = look.memory
    base = look.locks.completion(stack, frame)
    if base is None:
        return None
    for word in dict.fromkeys(stack.words):
        try:
            if not kernel_pointer(word) or word & 7:
                continue
            if m.value("struct bio", word, "bi_private") != base.address:
                continue
            if m.has("struct bio", "bi_bdev"):
                device = m.value("struct bio", word, "bi_bdev")
                disk = m.value("struct block_device", device, "bd_disk")
            else:
                disk = m.value("struct bio", word, "bi_disk")
            return _on_disk(look, replace(base, kind="io"), disk)
        except (MissingMemory, LookupError):
            continue
    return None


def on_device(look: Look, base: Claim, device: int) -> Claim:
    """``base``, with what its block device does."""
    if not device:
        return base
    return _on_disk(look, base, look.memory.value("struct block_device", device, "bd_disk"))


def _on_disk(look: Look, base: Claim, disk: int) -> Claim:
    m = look.memory
    name = m.text("struct gendisk", disk, "disk_name")
    if not base.object and base.kind != "folio":
        base = replace(base, object=f"block device {name}")
    if suspended := mapper_suspended(look, disk, name):
        return replace(base, note=suspended, sure="observed")
    pending = _pending(look, m.value("struct gendisk", disk, "queue"))
    if pending:
        age, text = max(pending)
        more = f" and {len(pending) - 1:,} more" if len(pending) > 1 else ""
        told = f"{name} has not answered a {text}{_aged(age)}{more}"
        base = replace(base, note=told, sure="observed")
    try:
        return _loop(look, base, disk, name)
    except (MissingMemory, LookupError):
        return base


def _aged(age: int) -> str:
    return f", for {age // 10**9} s" if age >= 10**9 else ""


def mapper_suspended(look: Look, disk: int, name: str) -> str:
    """That a device of the device mapper is suspended, "" if it is none or is not."""
    m = look.memory
    try:
        mapped = m.value("struct gendisk", disk, "private_data")
        if not mapped or m.value("struct mapped_device", mapped, "disk") != disk:
            return ""
        if not m.value("struct mapped_device", mapped, "flags") & _SUSPENDED:
            return ""
        cell = m.value("struct mapped_device", mapped, "interface_ptr")
        own = m.string(m.value("struct hash_cell", cell, "name"))
    except (MissingMemory, LookupError):
        return ""
    return f"device {name} ({own}) is suspended; `dmsetup resume {own}` lets it go on"


def why_frozen(look: Look, lock: int) -> str:
    """Who has frozen the file system that one of ``s_writers``' locks at ``lock`` belongs to."""
    m, kind = look.memory, "struct super_block"
    for number in range(3):
        try:
            block = lock - m.offset(kind, f"s_writers.rw_sem[{number}]")
            device = m.value(kind, block, "s_bdev")
            disk = m.value("struct block_device", device, "bd_disk")
            name = m.text("struct gendisk", disk, "disk_name")
        except (MissingMemory, LookupError):
            continue
        if suspended := mapper_suspended(look, disk, name):
            return suspended
    return FROZEN


def _pending(look: Look, queue: int) -> list[tuple[int, str]]:
    """(age in ns, "read of 4 KiB at sector 0") of each request that the driver has."""
    m = look.memory
    found = []
    for request in _requests(look, queue):
        kind = "struct request"
        operation = m.value(kind, request, "cmd_flags") & 0xFF
        begun = m.value(kind, request, "start_time_ns")
        size = m.value(kind, request, "__data_len")
        text = _OPERATIONS.get(operation, f"request {operation}")
        if size:
            text += f" of {size // 1024 or 1} KiB at sector {m.value(kind, request, '__sector')}"
        found.append((max(look.now - begun, 0) if begun and look.now else 0, text))
    return found


def _requests(look: Look, queue: int) -> Iterator[int]:
    """The requests of a queue that its driver works on, by their tags."""
    m = look.memory
    tag_set = m.value("struct request_queue", queue, "tag_set") if queue else 0
    if not tag_set:
        return
    count = m.value("struct blk_mq_tag_set", tag_set, "nr_hw_queues")
    every = m.value("struct blk_mq_tag_set", tag_set, "tags")
    for number in range(min(count, _MAX_QUEUES)):
        tags = m.u64(every + 8 * number)
        if not tags:
            continue
        size = min(m.value("struct blk_mq_tags", tags, "nr_tags"), _MAX_TAGS)
        array = m.value("struct blk_mq_tags", tags, "rqs")
        for tag in range(size):
            try:
                request = m.u64(array + 8 * tag)
                if not request or m.value("struct request", request, "q") != queue:
                    continue
                flying = m.value("struct request", request, "state") == _IN_FLIGHT
                if flying and m.value("struct request", request, "tag") == tag:
                    yield request
            except MissingMemory:
                continue


def _loop(look: Look, base: Claim, disk: int, name: str) -> Claim:
    """A loop device does its work in workers of the kernel, on a file."""
    m = look.memory
    kind = "struct loop_device"
    if not name.startswith("loop") or not m.has(kind, "lo_disk"):
        return base
    loop = m.value("struct gendisk", disk, "private_data")
    if m.value(kind, loop, "lo_disk") != disk:
        return base
    workers = []
    for worker in working(look):
        if not worker.function.startswith("loop_"):
            continue
        own = worker.work - m.offset("struct loop_worker", "work")
        root = worker.work - m.offset(kind, "rootcg_work")
        if root == loop or m.value("struct loop_worker", own, "lo") == loop:
            workers.append(worker.task)
    return replace(base, any_of=tuple(workers)) if workers else base


# -- NFS -------------------------------------------------------------------------------------------


def remote_call(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """A call to an NFS server, by the ``rpc_task`` whose bit is waited for."""
    m = look.memory
    word = waited_word(look, stack)
    if not word:
        return None
    task = word - m.offset("struct rpc_task", "tk_runstate")
    client = m.value("struct rpc_task", task, "tk_client")
    name = m.value("struct rpc_task", task, "tk_msg.rpc_proc")
    text = m.value("struct rpc_procinfo", name, "p_name") if name else 0
    call = m.string(text, 32) if text else ""
    base = claim(stack, frame, "nfs", task, "on the queue of its tk_runstate")
    note = f"it has not answered{f' {call}' if call else ''}"
    return replace(base, object=f"server {_server(look, client)}", note=note, sure="observed")


def _server(look: Look, client: int) -> str:
    m = look.memory
    transport = m.value("struct rpc_clnt", client, "cl_xprt")
    name = m.string(m.value("struct rpc_xprt", transport, "servername"), 128)
    address, port = (
        m.string(m.u64(transport + m.offset("struct rpc_xprt", "address_strings") + 8 * n), 64)
        for n in (0, 1)
    )
    return f"{name} ({address} port {port})" if name != address else f"{name} port {port}"
