"""Known waits for locks of the C library and for System V semaphores; see stock.py."""

import ctypes
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from stock import LIBC, SEMGET, SEMOP, asleep, call_me, meeting, process, sleep, system, thread

CLONE_NEWPID = 0x20000000
SEM_UNDO = 0x1000
SHARED, ROBUST = {"pshared": 1}, {"pshared": 1, "robust": 1}
SECOND = 256  # where in the shared page the second lock is


pages: list[mmap.mmap] = []  # they must outlive the locks in them


class Page:
    """A page that processes share, with locks in it."""

    def __init__(self) -> None:
        page = mmap.mmap(-1, 4096)
        pages.append(page)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(page))

    def mutex(self, at: int = 0, **attributes: int) -> ctypes.c_void_p:
        """A pthread mutex that has the attributes."""
        chosen = ctypes.create_string_buffer(16)
        LIBC.pthread_mutexattr_init(chosen)
        for name, value in attributes.items():
            getattr(LIBC, f"pthread_mutexattr_set{name}")(chosen, value)
        where = ctypes.c_void_p(self.address + at)
        LIBC.pthread_mutex_init(where, chosen)
        return where

    def rwlock(self, at: int = 0) -> ctypes.c_void_p:
        """A pthread read/write lock."""
        where = ctypes.c_void_p(self.address + at)
        LIBC.pthread_rwlock_init(where, None)
        return where


def opposite(lock: Callable[[Any], object], one: Any, two: Any) -> tuple[Callable[[], None], ...]:
    """What two tasks do that take two locks in opposite order."""
    meet = meeting()

    def take(which: int) -> None:
        lock((one, two)[which])
        meet(which)
        lock((two, one)[which])

    return partial(take, 0), partial(take, 1)


def robust_ring() -> None:
    page = Page()
    one, two = page.mutex(**ROBUST), page.mutex(SECOND, **ROBUST)
    first, second = opposite(LIBC.pthread_mutex_lock, one, two)
    process("robust0", first)
    process("robust1", second)


def rwlock_ring() -> None:
    def steps() -> None:
        page = Page()
        first, second = opposite(LIBC.pthread_rwlock_wrlock, page.rwlock(), page.rwlock(SECOND))
        thread("rwring1", second)
        first()

    process("rwring0", steps)


def rwlock_written() -> None:
    def steps() -> None:
        lock = Page().rwlock()
        thread("rwwriter", lambda: LIBC.pthread_rwlock_wrlock(lock))
        time.sleep(0.4)
        LIBC.pthread_rwlock_rdlock(lock)

    process("rwreader", steps)


def rwlock_read() -> None:
    def steps() -> None:
        lock = Page().rwlock()
        thread("rwholder", lambda: LIBC.pthread_rwlock_rdlock(lock))
        time.sleep(0.4)
        LIBC.pthread_rwlock_wrlock(lock)

    process("rwpatient", steps)


def locked_twice() -> None:
    def steps() -> None:
        lock = Page().mutex()
        LIBC.pthread_mutex_lock(lock)
        LIBC.pthread_mutex_lock(lock)

    process("twice", steps)


def owner_ended() -> None:
    lock = Page().mutex(**SHARED)
    if not (child := os.fork()):
        LIBC.pthread_mutex_lock(lock)
        os._exit(0)
    os.waitpid(child, 0)
    process("heir", lambda: LIBC.pthread_mutex_lock(lock))


def locked_and_forked() -> None:
    """fork(2) copies a mutex that another thread has: nobody will release the copy."""

    def steps() -> None:
        lock = ctypes.create_string_buffer(64)
        thread("forkholder", lambda: LIBC.pthread_mutex_lock(lock))
        time.sleep(0.4)
        if not os.fork():
            call_me("forkchild")
            LIBC.pthread_mutex_lock(lock)
        sleep()

    process("forkparent", steps)


def joined() -> None:
    """Joins a thread that waits for a lock of the joiner."""

    def steps() -> None:
        lock = Page().mutex()
        LIBC.pthread_mutex_lock(lock)

        def body(_argument: object) -> None:
            call_me("joined")
            LIBC.pthread_mutex_lock(lock)

        function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(body)
        made = ctypes.c_ulong()
        LIBC.pthread_create(ctypes.byref(made), None, function, None)
        LIBC.pthread_join(made, None)

    process("joiner", steps)


def stream_lock() -> None:
    def steps() -> None:
        LIBC.fdopen.restype = ctypes.c_void_p
        stream = ctypes.c_void_p(LIBC.fdopen(1, b"w"))
        thread("streamholder", lambda: LIBC.flockfile(stream))
        time.sleep(0.4)
        LIBC.flockfile(stream)

    process("streamwaiter", steps)


def contained() -> None:
    """A private and a shared pair of mutexes, each in a PID namespace of its own."""

    def inside(steps: Any) -> None:
        LIBC.unshare(CLONE_NEWPID)
        if not os.fork():
            call_me("nsinit")
            if not os.fork():
                steps()
            sleep()
        sleep()

    def private() -> None:
        call_me("inner0")
        page = Page()
        first, second = opposite(LIBC.pthread_mutex_lock, page.mutex(), page.mutex(SECOND))
        thread("inner1", second)
        first()

    def shared() -> None:
        page = Page()
        one, two = page.mutex(**SHARED), page.mutex(SECOND, **SHARED)
        first, second = opposite(LIBC.pthread_mutex_lock, one, two)
        if not os.fork():
            call_me("inner2")
            first()
        call_me("inner3")
        second()

    process("nsouter0", lambda: inside(private))
    process("nsouter1", lambda: inside(shared))
    time.sleep(1.5)


def semaphores_undone() -> None:
    """Two semaphores taken in opposite order, to be given back by the kernel."""
    sems = system(SEMGET, 0, 2, 0o600)
    for number in (0, 1):
        system(SEMOP, sems, struct.pack("Hhh", number, 1, 0), 1)

    def take(number: int) -> None:
        system(SEMOP, sems, struct.pack("Hhh", number, -1, SEM_UNDO), 1)

    first, second = opposite(take, 0, 1)
    process("undo0", first)
    process("undo1", second)


def lock_and_pipe() -> None:
    """A file lock's holder writes to a pipe whose reader wants the lock."""
    inner, outer = os.pipe()
    path = f"/tmp/lockandpipe{os.getpid()}"

    def lock() -> None:
        fcntl.flock(os.open(path, os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)

    def writer() -> None:
        lock()
        while True:
            os.write(outer, b"x" * 65536)

    asleep(process("lpwriter", writer, [outer]))

    def reader() -> None:
        lock()
        os.read(inner, 1)

    process("lpreader", reader, [inner])


def thread_ended() -> None:
    """A thread has ended with a mutex."""

    def steps() -> None:
        lock = Page().mutex()
        one = threading.Thread(target=lambda: LIBC.pthread_mutex_lock(lock))
        one.start()
        one.join()
        LIBC.pthread_mutex_lock(lock)

    process("bereft", steps)
