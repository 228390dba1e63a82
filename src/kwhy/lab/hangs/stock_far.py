"""Known waits for daemons, helpers of the kernel, terminals and tracers; see stock.py."""

import os
import pty
import resource
import select
import signal
import socket
import struct
import tempfile
import time

from stock import (
    FANOTIFY_INIT,
    FANOTIFY_MARK,
    LIBC,
    MSGGET,
    asleep,
    call_me,
    loopback_up,
    process,
    sleep,
    system,
    thread,
)
from stock_files import create, freeze, fuse, image, mounted, write

MSGSND, REQUEST_KEY = 69, 249
PTRACE, PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 101, 0x4206, 0x4207, 0x40000000
SESSION_KEYRING = -3
TCOOFF = 0


def script(path: str) -> str:
    """A program that sleeps for ever."""
    with open(path, "w") as file:
        file.write("#!/bin/sh\nexec sleep 100000\n")
    os.chmod(path, 0o755)
    return path


def message_full() -> None:
    queue = system(MSGGET, 0, 0o600)
    message = struct.pack("q", 1) + b"x" * 8000

    def sender() -> None:
        while True:
            system(MSGSND, queue, message, 8000, 0)

    process("msgsender", sender)


def helper_of_kernel() -> None:
    """A program that the kernel has started to get a key does not end."""
    script("/sbin/request-key")
    process("keyasker", lambda: system(REQUEST_KEY, b"user", b"kwhy:x", b"x", SESSION_KEYRING))


def core_not_read() -> None:
    """The program that core dumps are piped to does not read."""
    write("/proc/sys/kernel/core_pattern", "|" + script("/tmp/kwhycores"))

    def crash() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))
        thread("bystander", sleep)
        time.sleep(0.4)
        os.kill(os.getpid(), signal.SIGABRT)

    process("crasher", crash)
    time.sleep(1)


def core_behind_thread() -> None:
    """A core can be dumped only when all threads have come to their end."""
    where = mounted(image())
    freeze(where)

    def crash() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))
        thread("lingerer", lambda: create(f"{where}/new"))
        time.sleep(0.4)
        os.kill(os.getpid(), signal.SIGABRT)

    process("crasher2", crash)


def terminal_stopped() -> None:
    """Two programs write to a terminal whose output was stopped."""

    def master() -> None:
        _master, slave = pty.openpty()
        for number in range(2):
            if not os.fork():
                call_me(f"ttywriter{number}")
                os.close(_master)
                if number:
                    time.sleep(0.7)
                else:
                    LIBC.tcflow(slave, TCOOFF)
                while True:
                    os.write(slave, b"x" * 4096)
        os.close(slave)
        sleep()

    process("ttykeeper", master)
    time.sleep(1)


def fuse_itself() -> None:
    """A daemon of one thread uses the file system that it serves."""
    fuse("fuseself", 0, lambda where: os.stat(f"{where}/x"))


def scanner_itself() -> None:
    """A scanner opens a file that is to be scanned by itself."""
    directory = tempfile.mkdtemp()
    create(f"{directory}/file")
    group = system(FANOTIFY_INIT, 4, 0)  # FAN_CLASS_CONTENT
    mask = 0x08010000  # FAN_OPEN_PERM, FAN_EVENT_ON_CHILD
    system(FANOTIFY_MARK, group, 1, mask, -100, directory.encode())

    def scan() -> None:
        os.read(group, 4096)
        os.open(f"{directory}/file", os.O_RDONLY)

    process("scanself", scan, [group])
    process("scanvictim", lambda: os.open(f"{directory}/file", os.O_RDONLY))


def traced_ring() -> None:
    """A tracer waits for output of the process that it has stopped."""
    inner, outer = os.pipe()
    tracee = process("ringtracee", sleep, [outer])
    asleep(tracee)

    def tracer() -> None:
        system(PTRACE, PTRACE_SEIZE, tracee, 0, 0)
        system(PTRACE, PTRACE_INTERRUPT, tracee, 0, 0)
        os.waitpid(tracee, WALL)
        os.read(inner, 1)

    process("ringtracer", tracer, [inner])


def tcp_backlog() -> None:
    """A server does not accept, and its queue is full."""
    loopback_up()
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    address = server.getsockname()

    def client() -> None:
        kept = [socket.socket() for _ in range(3)]
        for one in kept:
            one.connect(address)

    process("tcplistener", sleep, [server.fileno()])
    process("tcpcaller", client)


def unix_write_both() -> None:
    """Both write to each other, and nobody reads."""
    one, two = socket.socketpair()
    process("uwriter0", lambda: one.sendall(b"x" * (1 << 24)), [one.fileno()])
    process("uwriter1", lambda: two.sendall(b"x" * (1 << 24)), [two.fileno()])


def select_set() -> None:
    inner, outer = os.pipe()
    process("selecter", lambda: select.select([inner], [], []), [inner])
    process("selected", sleep, [outer])
