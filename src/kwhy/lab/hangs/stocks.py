"""What a right answer says of the scenarios of stock.py and the files beside it."""

from collections.abc import Iterable
from dataclasses import dataclass

from kwhy.lab.hangs import HERE, Edge, run
from kwhy.link import Link

FILES = ("stock.py", "stock_files.py", "stock_locks.py", "stock_far.py")


@dataclass(frozen=True, slots=True)
class Stock:
    """``edges`` of the processes that are started; ``ends`` must stand in a finding's text.

    ``module``: it needs the layout of a module's structures, for which Debian's 5.10 has no BTF.
    """

    name: str
    edges: tuple[Edge, ...]
    cycles: tuple[frozenset[str], ...] = ()
    ends: str = ""
    possible: tuple[frozenset[str], ...] = ()
    gone: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    module: bool = False


def _far(waiter: str, kind: str, *others: str, object: str | None = None) -> Edge:
    return Edge(waiter, kind, any_of=others, object=object)


STOCKS: tuple[Stock, ...] = (
    Stock("pipe_writer_sleeps", (_far("preader", "pipe-read", "pwriter"),)),
    Stock(
        "pipe_of_popen",
        (_far("popen", "child", "popenchild"), _far("popenchild", "pipe-write", "popen")),
        cycles=(frozenset({"popen", "popenchild"}),),
    ),
    Stock(
        "pipe_without_end",
        (_far("eof", "child", "eofchild"), _far("eofchild", "pipe-read", "eof", "eofchild")),
        cycles=(frozenset({"eof", "eofchild"}),),
    ),
    Stock("pipe_of_two", (_far("pshared", "pipe-read", "pone", "ptwo"),)),
    Stock(
        "fifo_ring",
        tuple(_far(f"fifo{n}", "pipe-read", f"fifo{(n - 1) % 3}") for n in range(3)),
        cycles=(frozenset({"fifo0", "fifo1", "fifo2"}),),
    ),
    Stock("unix_peer", (_far("ureader", "socket", "upeer"),)),
    Stock(
        "unix_both",
        (_far("uboth0", "socket", "uboth1"), _far("uboth1", "socket", "uboth0")),
        cycles=(frozenset({"uboth0", "uboth1"}),),
    ),
    Stock("unix_timed", (_far("utimed0", "socket", "utimed1"),)),
    Stock(
        "unix_alarmed",
        (_far("ualarm0", "socket", "ualarm1"), _far("ualarm1", "socket", "ualarm0")),
    ),
    Stock("unix_full", (_far("ufull", "socket", "ufullpeer"),)),
    Stock("unix_connect", (_far("uclient", "socket", "ulistener"),)),
    Stock("tcp_peer", (_far("tcpreader", "socket", "tcppeer"),)),
    Stock("tcp_accept", (Edge("acceptor", "socket"),)),
    Stock("udp_receive", (Edge("udpreader", "socket"),)),
    Stock("child_sleeps", (_far("parent", "child", "child"),)),
    Stock("terminal", (_far("ttyreader", "tty", "ttymaster"),)),
    Stock("semaphore", (Edge("semwaiter", "sysv-sem"),)),
    Stock("semaphore_taken", (Edge("semqueue", "sysv-sem"),)),
    Stock("message", (Edge("msgreader", "message"),)),
    Stock("posix_message", (Edge("mqreader", "message"),)),
    Stock("event", (_far("eventreader", "eventfd", "eventreader"),)),
    Stock("signal_file", (Edge("sigreader", "signal", object="anon_inode:[signalfd]"),)),
    Stock("inotify", (Edge("inoreader", "inotify"),)),
    Stock("timer_file", (Edge("timereader", "timer", object="anon_inode:[timerfd]"),)),
    Stock("poll_set", (Edge("poller", "poll"),)),
    Stock("epoll_set", (Edge("epoller", "epoll"),)),
    Stock("ring", (Edge("uring", "io_uring"),)),
    Stock("user_fault", (_far("faulter", "userfault", "faulter"),)),
    Stock("stopped", (Edge("stopped", "stopped", object="SIGCONT"),)),
    Stock("traced", (_far("tracee", "stopped", "tracer"),)),
    Stock(
        "flock_chain", (Edge("flock1", "flock", ("flock0",)), Edge("flock2", "flock", ("flock1",)))
    ),
    Stock("open_file_lock", (Edge("ofdwaiter", "ofd-lock", ("ofdholder",)),)),
    Stock(
        "flock_ring",
        (Edge("fring0", "flock", ("fring1",)), Edge("fring1", "flock", ("fring0",))),
        cycles=(frozenset({"fring0", "fring1"}),),
    ),
    Stock(
        "two_mutexes",
        (Edge("abba0", "futex", ("abba1",)),),
        cycles=(frozenset({"abba0", "abba1"}),),
    ),
    Stock(
        "two_timed_mutexes",
        (Edge("timed0", "futex", ("timed1",)), Edge("timed1", "futex", ("timed0",))),
    ),
    Stock("condition", (Edge("condwaiter", "futex"),)),
    Stock(
        "fuse_stopped",
        (_far("fuseuser", "fuse", "fused"),),
        ends="fused is stopped",
        module=True,
    ),
    Stock(
        "fuse_fault",
        (_far("toucher", "fuse", "faultd"),),
        ends="faultd is stopped",
        module=True,
    ),
    Stock(
        "fuse_ring",
        (_far("selfuser", "fuse", "selffused"), Edge("selffused", "mutex", ("selfuser",))),
        cycles=(frozenset({"selffused", "selfuser"}),),
        module=True,
    ),
    Stock("frozen", (Edge("frozentouch", "freeze"), Edge("frozenmore", "freeze")), ends="fsfreeze"),
    Stock(
        "suspended",
        (Edge("dmreader", "folio", object="block device dm-0"), Edge("dmfsync", "freeze")),
        ends="dmsetup resume kwhysus",
        module=True,
    ),
    Stock(
        "network_disk",
        (Edge("nbdreader", "folio", object="block device nbd0"),),
        ends="nbd0 has not answered a read of ",
    ),
    Stock("loop_below_frozen", (Edge("loopwriter", "folio", any_of=("kworker",)),), module=True),
    Stock("dead_server", (Edge("nfsmount", "nfs"),), ends="server 127.0.0.1 port ", module=True),
    Stock("scanner", (_far("scanned", "fanotify", "scanner"),)),
    Stock(
        "frozen_group",
        (Edge("cold", "freezer", object="control group /icebox"),),
        ends="cgroup.freeze thaws it",
    ),
    Stock(
        "exec_behind_thread",
        (Edge("execer", "threads", ("unkillable",)), Edge("unkillable", "freeze")),
    ),
    Stock("killed_parent", (_far("killer", "child", "killed"), Edge("killed", "freeze"))),
    *(
        Stock(
            name,
            (Edge(one, kind, (two,)), Edge(two, kind, (one,))),
            cycles=(frozenset({one, two}),),
        )
        for name, kind, one, two in (
            ("robust_ring", "futex", "robust0", "robust1"),
            ("rwlock_ring", "futex", "rwring0", "rwring1"),
            ("semaphores_undone", "sysv-sem", "undo0", "undo1"),
        )
    ),
    Stock("rwlock_written", (Edge("rwreader", "futex", ("rwwriter",)),)),
    Stock("rwlock_read", (Edge("rwpatient", "futex"),), ends="1 reader holds it"),
    Stock("locked_twice", (Edge("twice", "futex", ("twice",)),), cycles=(frozenset({"twice"}),)),
    Stock("owner_ended", (Edge("heir", "futex"),), gone=("heir",)),
    Stock("thread_ended", (Edge("bereft", "futex"),), gone=("bereft",)),
    Stock(
        "locked_and_forked", (Edge("forkchild", "futex"),), gone=("forkchild",), ends="by fork(2)"
    ),
    Stock(
        "joined",
        (Edge("joiner", "threads", ("joined",)), Edge("joined", "futex", ("joiner",))),
        cycles=(frozenset({"joiner", "joined"}),),
    ),
    Stock("stream_lock", (Edge("streamwaiter", "futex", ("streamholder",)),)),
    Stock(
        "contained",
        tuple(Edge(f"inner{n}", "futex", (f"inner{n ^ 1}",)) for n in range(4)),
        cycles=(frozenset({"inner0", "inner1"}), frozenset({"inner2", "inner3"})),
    ),
    Stock(
        "lock_and_pipe",
        (_far("lpwriter", "pipe-write", "lpreader"), Edge("lpreader", "flock", ("lpwriter",))),
        cycles=(frozenset({"lpwriter", "lpreader"}),),
    ),
    Stock("message_full", (Edge("msgsender", "message"),), ends="room in message queue "),
    Stock("helper_of_kernel", (Edge("keyasker", "helper", ("kworker",)),)),
    Stock(
        "core_not_read",
        (_far("crasher", "pipe-write", "sleep"), Edge("bystander", "threads", ("crasher",))),
    ),
    Stock(
        "core_behind_thread",
        (Edge("crasher2", "threads", ("lingerer",)), Edge("lingerer", "freeze")),
    ),
    Stock(
        "terminal_stopped",
        (_far("ttywriter0", "tty", "ttykeeper"), Edge("ttywriter1", "mutex", ("ttywriter0",))),
    ),
    Stock(
        "fuse_itself",
        (_far("fuseself", "fuse", "fuseself"),),
        cycles=(frozenset({"fuseself"}),),
        module=True,
    ),
    Stock(
        "scanner_itself",
        (_far("scanself", "fanotify", "scanself"), _far("scanvictim", "fanotify", "scanself")),
        cycles=(frozenset({"scanself"}),),
    ),
    Stock(
        "traced_ring",
        (
            _far("ringtracee", "stopped", "ringtracer"),
            _far("ringtracer", "pipe-read", "ringtracee"),
        ),
        cycles=(frozenset({"ringtracee", "ringtracer"}),),
    ),
    Stock("tcp_backlog", (_far("tcpcaller", "socket", "tcplistener"),)),
    Stock(
        "unix_write_both",
        (_far("uwriter0", "socket", "uwriter1"), _far("uwriter1", "socket", "uwriter0")),
        cycles=(frozenset({"uwriter0", "uwriter1"}),),
    ),
    Stock("select_set", (Edge("selecter", "poll"),)),
)


def start(link: Link, names: Iterable[str]) -> dict[str, int]:
    """Put the processes of stock scenarios into their waits; their numbers by name.

    Raises KwhyError when that fails in the guest.
    """
    for name in FILES:
        link.put(HERE / name, name)
    out = run(link, "python3", FILES[0], *names)
    return {line.split()[0]: int(line.split()[1]) for line in out.splitlines()}
