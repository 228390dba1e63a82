"""Puts processes of a stock kernel into known waits, in the guest: stock.py SCENARIO ...

Each scenario is a function that starts processes by :func:`process`; none needs more than Python
and root. When all sleep: prints "NAME PID" for each and ends, leaving them behind.
"""

import ctypes
import fcntl
import mmap
import os
import pty
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable
from itertools import pairwise
from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_NAME = 15
FOREVER = 1 << 20
PATIENCE = 40.0  # seconds until everybody must have come to rest
REST = 0.4

started: dict[str, int] = {}


def process(name: str, steps: Callable[[], object], keep: Iterable[int] = ()) -> int:
    """Fork a process called ``name`` that runs ``steps``, with no descriptors but ``keep``."""
    number = os.fork()
    if number:
        started[name] = number
        return number
    try:
        os.setsid()
    except OSError:
        pass
    call_me(name)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    wanted = sorted({2, *keep})
    for low, high in pairwise([2, *wanted, 4096]):
        os.closerange(low + 1, high)
    try:
        steps()
        sleep()
    finally:
        os._exit(1)


def call_me(name: str) -> None:
    """Set the name of the calling thread."""
    LIBC.prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def sleep() -> NoReturn:
    """Sleep for ever."""
    while True:
        time.sleep(FOREVER)


def system(number: int, *values: Any) -> int:
    """A system call by its number; raises OSError."""
    plain = (ctypes.c_long(v) if isinstance(v, int) else v for v in values)
    result = int(LIBC.syscall(number, *plain))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def thread(name: str, steps: Callable[[], object]) -> int:
    """A thread called ``name``; its number is told like a process's."""

    def run() -> None:
        call_me(name)
        numbers[name] = threading.get_native_id()
        steps()
        sleep()

    numbers: dict[str, int] = {}
    threading.Thread(target=run, daemon=True).start()
    while name not in numbers:
        time.sleep(0.01)
    return numbers[name]


def rest(number: int) -> tuple[str, list[str]] | None:
    """Something that does not change while a process does not run, None once it has ended."""
    try:
        with open(f"/proc/{number}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
        with open(f"/proc/{number}/status") as file:
            return state, [line for line in file if "ctxt_switches" in line]
    except OSError:
        return None


def settle(numbers: Collection[int]) -> None:
    """Wait until none of ``numbers`` has run for a while."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        before = [rest(number) for number in numbers]
        time.sleep(REST)
        quiet = all(seen is not None and seen[0] in "SDTt" for seen in before)
        if quiet and before == [rest(number) for number in numbers]:
            return
    sys.exit("not all came to rest: " + repr([rest(number) for number in numbers]))


def meeting() -> Callable[[int], None]:
    """A function in which each of two processes, 0 and 1, waits until the other has come."""
    came = mmap.mmap(-1, 4096)

    def meet(which: int) -> None:
        came[which] = 1
        while not (came[0] and came[1]):
            time.sleep(0.05)

    return meet


def asleep(number: int) -> None:
    """Wait until one process sleeps."""
    settle([number])


# -- pipes, sockets, children ----------------------------------------------------------------------


def pipe_writer_sleeps() -> None:
    inner, outer = os.pipe()
    process("preader", lambda: os.read(inner, 1), [inner])
    process("pwriter", sleep, [outer])


def pipe_of_popen() -> None:
    """The parent waits for the end of a child whose output it does not read."""

    def parent() -> None:
        inner, outer = os.pipe()
        child = os.fork()
        if not child:
            os.close(inner)
            call_me("popenchild")
            while True:
                os.write(outer, b"x" * 4096)
        os.close(outer)
        os.waitpid(child, 0)

    process("popen", parent)


def pipe_without_end() -> None:
    """A child reads to the end of a pipe that its parent still has open for writing."""

    def parent() -> None:
        inner, outer = os.pipe()
        child = os.fork()
        if not child:
            call_me("eofchild")
            os.read(inner, 1)
            os.close(outer)
        os.waitpid(child, 0)

    process("eof", parent)


def pipe_of_two() -> None:
    inner, outer = os.pipe()
    process("pshared", lambda: os.read(inner, 1), [inner])
    process("pone", sleep, [outer])
    process("ptwo", sleep, [outer])


def fifo_ring() -> None:
    directory = tempfile.mkdtemp()
    paths = [f"{directory}/fifo{number}" for number in range(3)]
    for path in paths:
        os.mkfifo(path)
    for number in range(3):

        def steps(number: int = number) -> None:
            out = os.open(paths[number], os.O_RDWR)
            inner = os.open(paths[number - 1], os.O_RDONLY)
            only = os.open(paths[number], os.O_WRONLY)
            os.close(out)
            os.read(inner, 1)
            os.write(only, b"x")

        process(f"fifo{number}", steps)


def unix_peer() -> None:
    one, two = socket.socketpair()
    process("ureader", lambda: one.recv(1), [one.fileno()])
    process("upeer", sleep, [two.fileno()])


def unix_both() -> None:
    one, two = socket.socketpair()
    process("uboth0", lambda: one.recv(1), [one.fileno()])
    process("uboth1", lambda: two.recv(1), [two.fileno()])


def unix_timed() -> None:
    """Both wait for each other, but one of them not for ever."""
    one, two = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", 100000, 0))
    process("utimed0", lambda: one.recv(1), [one.fileno()])
    process("utimed1", lambda: two.recv(1), [two.fileno()])


def unix_alarmed() -> None:
    """Both wait for each other, but a signal will interrupt one of them."""
    one, two = socket.socketpair()

    def reader() -> None:
        signal.alarm(FOREVER)
        one.recv(1)

    process("ualarm0", reader, [one.fileno()])
    process("ualarm1", lambda: two.recv(1), [two.fileno()])


def unix_full() -> None:
    one, two = socket.socketpair()
    process("ufull", lambda: one.sendall(b"x" * (1 << 24)), [one.fileno()])
    process("ufullpeer", sleep, [two.fileno()])


def unix_connect() -> None:
    path = tempfile.mkdtemp() + "/socket"
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(0)

    def client() -> None:
        for _ in range(3):
            one = socket.socket(socket.AF_UNIX)
            one.connect(path)
            kept.append(one)

    kept: list[socket.socket] = []
    process("ulistener", sleep, [server.fileno()])
    process("uclient", client)


def loopback_up() -> None:
    one = socket.socket()
    flags = struct.pack("16sh14x", b"lo", 1 | 64)
    fcntl.ioctl(one, 0x8914, flags)  # SIOCSIFFLAGS
    one.close()


def tcp_peer() -> None:
    loopback_up()
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    other, _ = server.accept()
    process("tcpreader", lambda: client.recv(1), [client.fileno()])
    process("tcppeer", sleep, [other.fileno()])


def tcp_accept() -> None:
    loopback_up()
    server = socket.create_server(("127.0.0.1", 0))
    process("acceptor", server.accept, [server.fileno()])


def udp_receive() -> None:
    loopback_up()
    one = socket.socket(type=socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 0))
    process("udpreader", lambda: one.recv(1), [one.fileno()])


def child_sleeps() -> None:
    def parent() -> None:
        child = os.fork()
        if not child:
            call_me("child")
            sleep()
        os.waitpid(child, 0)

    process("parent", parent)


def terminal() -> None:
    def reader() -> None:
        master, slave = pty.openpty()
        child = os.fork()
        if not child:
            call_me("ttyreader")
            os.close(master)
            os.read(slave, 1)
        os.close(slave)
        sleep()

    process("ttymaster", reader)


# -- system V and friends --------------------------------------------------------------------------

SEMGET, SEMOP, MSGGET, MSGRCV = 64, 65, 68, 70
MQ_OPEN, MQ_TIMEDRECEIVE = 240, 243
EVENTFD, SIGNALFD, TIMERFD_CREATE, INOTIFY_INIT, USERFAULTFD = 290, 289, 283, 294, 323
FANOTIFY_INIT, FANOTIFY_MARK, IO_URING_SETUP, IO_URING_ENTER = 300, 301, 425, 426


def semaphore() -> None:
    sems = system(SEMGET, 0, 1, 0o600)

    def take() -> None:
        system(SEMOP, sems, struct.pack("Hhh", 0, -1, 0), 1)

    process("semwaiter", take)


def semaphore_taken() -> None:
    """The one who took it last sleeps."""
    sems = system(SEMGET, 0, 1, 0o600)
    system(SEMOP, sems, struct.pack("Hhh", 0, 1, 0), 1)

    def take() -> None:
        system(SEMOP, sems, struct.pack("Hhh", 0, -1, 0), 1)

    asleep(process("semholder", take))
    process("semqueue", take)


def message() -> None:
    queue = system(MSGGET, 0, 0o600)
    process("msgreader", lambda: system(MSGRCV, queue, bytes(64), 8, 0, 0))


def posix_message() -> None:
    queue = system(MQ_OPEN, b"kwhy", os.O_CREAT | os.O_RDWR, 0o600, 0)
    process("mqreader", lambda: system(MQ_TIMEDRECEIVE, queue, bytes(8192), 8192, 0, 0), [queue])


def event() -> None:
    one = system(EVENTFD, 0, 0)
    process("eventreader", lambda: os.read(one, 8), [one])


def signal_file() -> None:
    def reader() -> None:
        mask = 1 << (signal.SIGUSR1 - 1)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        one = system(SIGNALFD, -1, struct.pack("Q", mask), 8, 0)
        os.read(one, 128)

    process("sigreader", reader)


def inotify() -> None:
    one = system(INOTIFY_INIT, 0)
    process("inoreader", lambda: os.read(one, 128), [one])


def timer_file() -> None:
    one = system(TIMERFD_CREATE, 1, 0)
    process("timereader", lambda: os.read(one, 8), [one])


def poll_set() -> None:
    inner, outer = os.pipe()
    one, two = socket.socketpair()

    def poller() -> None:
        poll = select.poll()
        poll.register(inner, select.POLLIN)
        poll.register(one, select.POLLIN)
        poll.poll()

    process("poller", poller, [inner, one.fileno()])
    process("polled", sleep, [outer, two.fileno()])


def epoll_set() -> None:
    inner, outer = os.pipe()

    def poller() -> None:
        poll = select.epoll()
        poll.register(inner, select.POLLIN)
        poll.poll()

    process("epoller", poller, [inner])
    process("epolled", sleep, [outer])


def ring() -> None:
    def waiter() -> None:
        parameters = ctypes.create_string_buffer(120)
        one = system(IO_URING_SETUP, 4, parameters)
        system(IO_URING_ENTER, one, 0, 1, 1, 0, 0)

    process("uring", waiter)


def user_fault() -> None:
    """A page fault that a stopped user space handler should answer."""

    def faulter() -> None:
        one = system(USERFAULTFD, 0)
        fcntl.ioctl(one, 0xC018AA3F, struct.pack("QQQ", 0xAA, 0, 0))  # UFFDIO_API
        area = mmap.mmap(-1, 4096)
        at = ctypes.addressof(ctypes.c_char.from_buffer(area))
        fcntl.ioctl(one, 0xC020AA00, struct.pack("QQQQ", at, 4096, 1, 0))  # UFFDIO_REGISTER
        area[0]

    process("faulter", faulter)


def stopped() -> None:
    process("stopped", lambda: os.kill(os.getpid(), signal.SIGSTOP))


def traced() -> None:
    PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
    tracee = process("tracee", sleep)
    asleep(tracee)  # stopped earlier it would still have what it inherited

    def tracer() -> None:
        system(101, PTRACE_SEIZE, tracee, 0, 0)
        system(101, PTRACE_INTERRUPT, tracee, 0, 0)
        os.waitpid(tracee, 0x40000000)

    process("tracer", tracer)


# -- locks -----------------------------------------------------------------------------------------


def flock_chain() -> None:
    directory = tempfile.mkdtemp()
    files = [os.open(f"{directory}/{name}", os.O_RDWR | os.O_CREAT) for name in "ab"]

    def take(*names: str) -> None:
        for name in names:
            fcntl.flock(os.open(f"{directory}/{name}", os.O_RDWR), fcntl.LOCK_EX)

    for descriptor in files:
        os.close(descriptor)
    asleep(process("flock0", lambda: take("a")))
    asleep(process("flock1", lambda: take("b", "a")))
    process("flock2", lambda: take("b"))


def open_file_lock() -> None:
    """Locks of open files (fcntl F_OFD_SETLKW), held by a child after its parent's open()."""
    path = tempfile.mkdtemp() + "/ofd"

    def take() -> None:
        one = os.open(path, os.O_RDWR | os.O_CREAT)
        fcntl.fcntl(one, 38, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))

    asleep(process("ofdholder", take))
    process("ofdwaiter", take)


def flock_ring() -> None:
    directory = tempfile.mkdtemp()
    for name in "ab":
        os.close(os.open(f"{directory}/{name}", os.O_RDWR | os.O_CREAT))

    meet = meeting()

    def take(which: int, first: str, second: str) -> None:
        fcntl.flock(os.open(f"{directory}/{first}", os.O_RDWR), fcntl.LOCK_EX)
        meet(which)
        fcntl.flock(os.open(f"{directory}/{second}", os.O_RDWR), fcntl.LOCK_EX)

    process("fring0", lambda: take(0, "a", "b"))
    process("fring1", lambda: take(1, "b", "a"))


def two_mutexes() -> None:
    """Threads that take two pthread mutexes in opposite order."""

    def steps() -> None:
        first, second = (ctypes.create_string_buffer(40) for _ in range(2))

        def take(one: Any, two: Any) -> None:
            LIBC.pthread_mutex_lock(one)
            time.sleep(0.5)
            LIBC.pthread_mutex_lock(two)

        thread("abba1", lambda: take(first, second))
        take(second, first)

    process("abba0", steps)


def two_timed_mutexes() -> None:
    """The same, but one of them gives up after a while."""

    def steps() -> None:
        first, second = (ctypes.create_string_buffer(40) for _ in range(2))

        def take() -> None:
            LIBC.pthread_mutex_lock(first)
            time.sleep(0.5)
            limit = struct.pack("qq", int(time.time()) + FOREVER, 0)
            LIBC.pthread_mutex_timedlock(second, limit)

        thread("timed1", take)
        LIBC.pthread_mutex_lock(second)
        time.sleep(0.5)
        LIBC.pthread_mutex_lock(first)

    process("timed0", steps)


def condition() -> None:
    def steps() -> None:
        mutex, variable = ctypes.create_string_buffer(40), ctypes.create_string_buffer(48)
        LIBC.pthread_mutex_lock(mutex)
        LIBC.pthread_cond_wait(variable, mutex)

    process("condwaiter", steps)


def main() -> None:
    """Run the scenarios named, each in its own process, so that none inherits another's files."""
    import stock_far
    import stock_files
    import stock_locks

    known = {**globals(), **vars(stock_files), **vars(stock_far), **vars(stock_locks)}
    inner, outer = os.pipe()
    for name in sys.argv[1:]:
        if not os.fork():
            os.setsid()
            os.close(inner)
            known[name]()
            os.closerange(3, outer)
            os.closerange(outer + 1, 4096)
            settle(started.values())
            os.write(outer, "".join(f"{n} {p}\n" for n, p in started.items()).encode())
            os.close(outer)
            sleep()
    os.close(outer)
    with os.fdopen(inner) as told:
        sys.stdout.write(told.read())


if __name__ == "__main__":
    sys.modules["stock"] = sys.modules["__main__"]
    main()
