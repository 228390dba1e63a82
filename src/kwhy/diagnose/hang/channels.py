"""Waiting for the other end of something: pipes, sockets, terminals, daemons behind a device.

The far end is whoever has the other side open. It is complete only when the kernel's own counts say
that nobody else has.
"""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import replace

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.ends import READABLE, WRITABLE, Open
from kwhy.diagnose.hang.look import Look, claim, ended_by
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.stacks import Frame, Stack

_FOREVER = (1 << 63) - 1  # MAX_SCHEDULE_TIMEOUT
_LISTENING = 10  # TCP_LISTEN, in unix sockets too
_SYN_SENT = 2  # TCP_SYN_SENT
_COREDUMP = frozenset({"do_coredump", "vfs_coredump", "dump_emit", "__dump_emit"})
_DUMPED = "the pipe to the program that writes core dumps (kernel.core_pattern)"
_LOOPED = 64  # entries of a list that are followed


def pipe(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """A pipe that is empty (or full): who has its other end open."""
    m = look.memory
    reading = "read" in frame.name
    kind = "pipe-read" if reading else "pipe-write"
    if not m.has("struct pipe_inode_info", "rd_wait"):
        return claim(stack, frame, kind, 0, f"sleeping in {frame.name}")
    wait = "rd_wait" if reading else "wr_wait"
    here = look.inside(look.queue(stack), "struct pipe_inode_info", wait)
    mode, count = (WRITABLE, "writers") if reading else (READABLE, "readers")
    ends = [one for one in look.ends.of(here) if one.mode & mode]
    known = len(ends) == m.value("struct pipe_inode_info", here, count)
    found = claim(stack, frame, kind, here, "on the pipe's wait queue")
    found = ended_by(found, look, ends, known)
    if not known:
        note = "its other end is also kept where no process has it open, as in a message"
        found = replace(found, note=note)
    if not _COREDUMP.isdisjoint(stack.names):
        found = replace(found, object=_DUMPED)
    return _own_end(look, found, f" for {'writing' if reading else 'reading'}")


def dumped(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """The core is written; the program that it was piped to has to end before the process may."""
    m, kind = look.memory, "struct pipe_inode_info"
    here = look.inside(look.queue(stack), kind, "rd_wait")
    ends = [one for one in look.ends.of(here) if one.mode & READABLE]
    found = claim(stack, frame, "pipe-write", here, "on the pipe's wait queue")
    note = "the core is written, and the process ends when that program has closed its input"
    found = ended_by(found, look, ends, len(ends) + 1 == m.value(kind, here, "readers"))
    return replace(found, object=_DUMPED, note=note)


def _own_end(look: Look, found: Claim, way: str = "") -> Claim:
    """Says so where the only other end is the waiter's own."""
    own = look.tasks.by_address[found.task].tgid
    if look.processes(found.any_of) == {own}:
        return replace(found, note=f"only this process itself has it open{way}")
    return found


def fifo_open(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """open(2) of a FIFO waits for somebody to open its other end."""
    note = "nobody has opened the other end of the FIFO yet"
    return replace(claim(stack, frame, "fifo-open", 0, f"sleeping in {frame.name}"), note=note)


# -- sockets ---------------------------------------------------------------------------------------


def connection(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """Any socket: what it is connected to, and who has the other end if it is on this machine."""
    m = look.memory
    queue = look.queue(stack)
    here = look.inside(queue, "struct socket", "wq.wait")
    sk = m.value("struct socket", here, "sk")
    if m.value("struct sock", sk, "sk_socket") != here:
        return None
    found = claim(stack, frame, "socket", here, "on the socket's wait queue")
    limits = ("sk_rcvtimeo", "sk_sndtimeo")
    found = replace(found, timed=any(m.value("struct sock", sk, at) != _FOREVER for at in limits))
    listens = m.value("struct sock", sk, "__sk_common.skc_state") == _LISTENING
    family = m.value("struct sock", sk, "__sk_common.skc_family")
    if family == socket.AF_UNIX:
        return _unix(look, found, sk, listens)
    if family in (socket.AF_INET, socket.AF_INET6):
        return _inet(look, found, sk, family, listens)
    if family == socket.AF_NETLINK:
        protocol = m.value("struct sock", sk, "sk_protocol") & 0xFFFF
        what = _NETLINK.get(protocol, f"protocol {protocol}")
        return replace(found, object=f"netlink socket ({what})")
    return found


#: linux/netlink.h
_NETLINK = {
    0: "route", 4: "sock_diag", 6: "xfrm", 7: "selinux", 9: "audit", 10: "fib_lookup",
    12: "netfilter", 15: "uevent", 16: "generic",
}  # fmt: skip


def _unix(look: Look, found: Claim, sk: int, listens: bool) -> Claim:
    m = look.memory
    path = _unix_path(m, sk)
    if listens:
        return replace(found, object=f"unix socket {path}", note="nobody connects to it")
    peer = m.value("struct unix_sock", sk, "peer")
    if not peer:
        return replace(found, object=f"unix socket {path}".strip())
    path = path or _unix_path(m, peer)
    far = m.value("struct sock", peer, "sk_socket")
    mutual = m.value("struct unix_sock", peer, "peer") == sk
    found = replace(found, object=f"unix socket {path}" if path else "")
    return ended_by(found, look, look.ends.of(far) if far else (), mutual)


def _unix_path(m: Memory, sk: int) -> str:
    try:
        at = m.value("struct unix_sock", sk, "addr")
        if not at:
            return ""
        size = m.value("struct unix_address", at, "len") - 2
        raw = m.read(at + m.offset("struct unix_address", "name") + 2, min(max(size, 0), 108))
    except (MissingMemory, LookupError):
        return ""
    text = raw.rstrip(b"\0") if raw[:1] != b"\0" else b"@" + raw[1:]
    return text.split(b"\0")[0].decode("utf-8", "replace")


def unix_connecting(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """connect(2), or a datagram, to a unix socket whose queue is full."""
    m = look.memory
    queue = m.first("struct unix_sock", "peer_wq.wait", "peer_wait")
    other = look.inside(look.queue(stack), "struct unix_sock", queue)
    far = m.value("struct sock", other, "sk_socket")
    found = claim(stack, frame, "socket", other, "on the other socket's peer_wait")
    note = "the queue of the socket that it wants to reach is full"
    found = replace(found, object=f"unix socket {_unix_path(m, other)}".strip(), note=note)
    return ended_by(found, look, look.ends.of(far) if far else ())


def _inet(look: Look, found: Claim, sk: int, family: int, listens: bool) -> Claim:
    m = look.memory
    near, far = _addresses(m, sk, family)
    protocol = {6: "TCP", 17: "UDP"}.get(m.value("struct sock", sk, "sk_protocol") & 0xFFFF, "IP")
    if listens:
        return replace(found, object=f"{protocol} port {near}", note="nobody connects to it")
    if far.endswith(":0"):
        note = "it is not connected: anybody may send to it"
        return replace(found, object=f"{protocol} port {near}", note=note)
    found = replace(found, object=f"{protocol} {near} -> {far}")
    if protocol != "TCP":
        return found
    net = m.value("struct sock", sk, "__sk_common.skc_net.net")
    private = _connected(look).get((family, net, far, near))
    if private is not None:
        return ended_by(found, look, look.ends.of(private))
    if m.value("struct sock", sk, "__sk_common.skc_state") == _SYN_SENT:
        return _calling(look, found, net, (near, far))
    return replace(found, note=f"{far} does not answer, or has nothing to say")


def _calling(look: Look, found: Claim, net: int, ends: tuple[str, str]) -> Claim:
    """connect(2) has not been answered: who listens there, if that is on this machine."""
    m = look.memory
    near = ends[0].rpartition(":")[0]
    far, _, port = ends[1].rpartition(":")
    known = _connected(look)
    places = [(socket.AF_INET, far, "0.0.0.0"), (socket.AF_INET6, far, "[::]")]
    if far == near:
        places += [(socket.AF_INET, "0.0.0.0", "0.0.0.0"), (socket.AF_INET6, "[::]", "[::]")]
    for family, address, nobody in places:
        private = known.get((family, net, f"{address}:{port}", f"{nobody}:0"))
        if private is None:
            continue
        listener = m.value("struct socket", private, "sk")
        waiting = m.value("struct sock", listener, "sk_ack_backlog")
        note = "it listens, and has not answered"
        if waiting > m.value("struct sock", listener, "sk_max_ack_backlog"):
            note = f"accept(2) is not called there: its queue is full, {waiting} long"
        return replace(ended_by(found, look, look.ends.of(private), only=False), note=note)
    return replace(found, note=f"{ends[1]} does not answer")


def _connected(look: Look) -> dict[tuple[int, int, str, str], int]:
    """The open TCP sockets by family, name space, near and far address."""
    if "connected" not in look.cache:
        m = look.memory
        found: dict[tuple[int, int, str, str], int] = {}
        for private in look.ends.private():
            try:
                sk = m.value("struct socket", private, "sk")
                if m.value("struct sock", sk, "sk_socket") != private:
                    continue
                if m.value("struct sock", sk, "sk_protocol") & 0xFFFF != socket.IPPROTO_TCP:
                    continue
                family = m.value("struct sock", sk, "__sk_common.skc_family")
                if family in (socket.AF_INET, socket.AF_INET6):
                    net = m.value("struct sock", sk, "__sk_common.skc_net.net")
                    found.setdefault((family, net, *_addresses(m, sk, family)), private)
            except (MissingMemory, LookupError):
                continue
        look.cache["connected"] = found
    connected: dict[tuple[int, int, str, str], int] = look.cache["connected"]
    return connected


def _addresses(m: Memory, sk: int, family: int) -> tuple[str, str]:
    """("127.0.0.1:80", "10.0.0.2:5000"): near and far."""
    ports = [
        m.value("struct sock", sk, "__sk_common.skc_num"),
        int.from_bytes(m.read(sk + m.offset("struct sock", "__sk_common.skc_dport"), 2), "big"),
    ]
    names = ("skc_rcv_saddr", "skc_daddr")
    size = 4
    if family == socket.AF_INET6:
        names, size = ("skc_v6_rcv_saddr", "skc_v6_daddr"), 16
    found = []
    for name, port in zip(names, ports, strict=True):
        raw = m.read(sk + m.offset("struct sock", f"__sk_common.{name}"), size)
        address = socket.inet_ntop(family, raw)
        found.append(f"[{address}]:{port}" if size == 16 else f"{address}:{port}")
    return found[0], found[1]


# -- terminals -------------------------------------------------------------------------------------


_STOPPED = "its output is stopped, as by Ctrl-S or tcflow(3); Ctrl-Q lets it go on"


def terminal(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """Input (or room) of a terminal; behind a pseudo terminal is a program."""
    m = look.memory
    queue = look.queue(stack)
    reading = "read" in frame.name
    tty = look.inside(queue, "struct tty_struct", "read_wait" if reading else "write_wait")
    name = m.text("struct tty_struct", tty, "name")
    found = claim(stack, frame, "tty", tty, "on the terminal's wait queue")
    found = replace(found, object=f"terminal {name}", note="somebody has to type something")
    if not reading:
        found = replace(found, note=_STOPPED if _stopped(m, tty) else "its output is not read")
    link = m.value("struct tty_struct", tty, "link")
    if not link or m.value("struct tty_struct", link, "link") != tty:
        return found
    found = ended_by(found, look, _terminal_files(look, link))
    return replace(found, note="") if reading else found


def _stopped(m: Memory, tty: int) -> bool:
    """Whether the terminal's output is switched off."""
    paths = [p for p in ("flow.stopped", "stopped") if m.has("struct tty_struct", p)]
    return any(m.value("struct tty_struct", tty, path) for path in paths)


def _terminal_files(look: Look, tty: int) -> Iterator[Open]:
    m = look.memory
    for node in _list(m, tty + m.offset("struct tty_struct", "tty_files")):
        held = node - m.offset("struct tty_file_private", "list")
        if m.value("struct tty_file_private", held, "tty") == tty:
            yield look.ends.file(m.value("struct tty_file_private", held, "file"))


def _list(m: Memory, head: int) -> Iterator[int]:
    """The nodes of a ``struct list_head``; ends where it is torn."""
    node = head
    for _ in range(_LOOPED):
        following = m.u64(node)
        if following == head or m.u64(following + 8) != node:
            return
        yield following
        node = following


# -- daemons ---------------------------------------------------------------------------------------

#: linux/fuse.h: what a request asks for.
_FUSE = {
    1: "look a name up", 3: "get attributes", 4: "set attributes", 5: "read a link",
    8: "make a node", 9: "make a directory", 10: "remove a file", 11: "remove a directory",
    12: "rename", 13: "link", 14: "open", 15: "read", 16: "write", 17: "tell its size",
    18: "release a file", 20: "fsync", 22: "get an attribute", 25: "flush", 26: "begin",
    27: "open a directory", 28: "read a directory", 31: "get a lock", 33: "lock and wait",
    34: "check access", 35: "create", 43: "allocate", 45: "rename", 52: "get attributes",
}  # fmt: skip


def fuse(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """A request to a file system in user space: who has its device open, and what was asked."""
    m, kind = look.memory, "struct fuse_req"
    request = look.inside(look.queue(stack), kind, "waitq")
    asked = m.value(kind, request, "in.h.opcode")
    found = claim(stack, frame, "fuse", request, "on the request's wait queue")
    note = f"its daemon was asked to {_FUSE.get(asked, f'do {asked}')} and has not answered"
    found = replace(found, note=note)
    if m.has(kind, "fm"):
        mount = m.value(kind, request, "fm")
        found = replace(found, extra=(("super_block", m.value("struct fuse_mount", mount, "sb")),))
        connection = m.value("struct fuse_mount", mount, "fc")
    else:  # since 7.1
        connection = m.value("struct fuse_chan", m.value(kind, request, "chan"), "conn")
        for node in _list(m, connection + m.offset("struct fuse_conn", "mounts")):
            mount = node - m.offset("struct fuse_mount", "fc_entry")
            block = m.value("struct fuse_mount", mount, "sb")
            found = replace(found, extra=(("super_block", block),))
    return ended_by(found, look, _fuse_devices(look, connection), itself=True)


def fuse_page(look: Look, super_block: int) -> tuple[Open, ...]:
    """Who serves the file system of a super block, if that is a FUSE daemon."""
    m = look.memory
    mount = m.value("struct super_block", super_block, "s_fs_info")
    if m.value("struct fuse_mount", mount, "sb") != super_block:
        return ()
    return tuple(_fuse_devices(look, m.value("struct fuse_mount", mount, "fc")))


def _fuse_devices(look: Look, connection: int) -> Iterator[Open]:
    """The open devices of a connection, through its channel where it has one."""
    m = look.memory
    kind, back = ("struct fuse_conn", "fc")
    if m.has("struct fuse_dev", "chan"):
        connection = m.value(kind, connection, "chan")
        kind, back = ("struct fuse_chan", "chan")
    for node in _list(m, connection + m.offset(kind, "devices")):
        device = node - m.offset("struct fuse_dev", "entry")
        if m.value("struct fuse_dev", device, back) == connection:
            yield from look.ends.of(device)


def _private(  # type: ignore[no-untyped-def]
    type: str, paths: Iterable[str], kind: str, note: str, object: str = ""
):
    """Waits on a queue inside of what an open file's private data points to."""

    def prove(look: Look, stack: Stack, frame: Frame) -> Claim | None:
        queue = look.queue(stack)
        for path in paths:
            if not look.memory.has(type, path):
                continue
            here = look.inside(queue, type, path)
            opens = look.ends.of(here)
            if opens:
                found = claim(stack, frame, kind, here, f"on the queue of a {type}")
                found = replace(ended_by(found, look, opens, False), note=note, object=object)
                return _own_end(look, found)
        return None

    return prove


def scanner(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """A scanner (fanotify) is asked whether a file may be used."""
    path = "fanotify_data.access_waitq"
    group = look.inside(look.queue(stack), "struct fsnotify_group", path)
    found = claim(stack, frame, "fanotify", group, "on the queue of a struct fsnotify_group")
    note = "a scanner has been asked whether the file may be used and has not answered"
    return ended_by(replace(found, note=note), look, look.ends.of(group), itself=True)


page_fault = _private(
    "struct userfaultfd_ctx",
    ("fault_wqh", "fault_pending_wqh"),
    "userfault",
    "the page is to be supplied by whoever has the userfaultfd open",
    "a page of its memory",
)
full_event = _private(
    "struct eventfd_ctx", ("wqh",), "eventfd", "its counter can grow no more until it is read"
)
event = _private(
    "struct eventfd_ctx", ("wqh",), "eventfd",
    "its counter is 0; the kernel, too, may add to it",
)  # fmt: skip
