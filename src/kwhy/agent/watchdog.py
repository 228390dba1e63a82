"""A small process that outlives the agent just long enough to put tracing back.

It is forked before the agent does anything, in its own session, and blocks on a pipe whose other
end only the agent holds. The pipe ends when the agent does, however it dies.
"""

import os
import select
import signal
import time

from . import journal, protocol

POLITE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What ends ordinary processes; the watchdog ends by itself."""


def start(port: str = "") -> int:
    """Fork the watchdog; returns the descriptor whose end it waits for: keep it, never share it.

    What is written to the descriptor is the nonce of the present desk. With a ``port`` (the path
    of a character device), which shows no end when its last user dies, the watchdog tells the desk.
    """
    agent = os.getpid()
    read_end, write_end = os.pipe()
    begun, ready = os.pipe()
    # A Ctrl-C must not find the watchdog before it has left our process group.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, POLITE)
    pid = os.fork()
    if pid:
        os.close(read_end)
        os.close(ready)
        os.read(begun, 1)  # ends when the watchdog is out of reach, or dead
        os.close(begun)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return write_end
    try:
        os.setsid()
        for number in POLITE:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(ready)
        _watch(agent, read_end, port)
    finally:
        os._exit(0)


def _watch(agent: int, pipe: int, port: str) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    close_all({0, 1, 2, pipe})
    os.chdir("/")
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-900")
    except OSError:
        pass
    nonce = b""
    while True:
        data = os.read(pipe, 4096)
        if not data:
            break
        nonce = (nonce + data)[-protocol.NONCE_SIZE :]
    journal.repair(pid=agent)
    if port and nonce:
        _tell(port, protocol.GONE + nonce)


def _tell(port: str, data: bytes) -> None:
    """Write to the port, unless another agent has it already or nobody listens."""
    try:
        fd = os.open(port, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    end = time.monotonic() + 2
    while data and time.monotonic() < end:
        if any(events & ~select.POLLOUT for _, events in poll.poll(200)):
            return
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            continue
        except OSError:
            return


def close_all(keep: "set[int]") -> None:
    """Close every descriptor of this process but those in ``keep``."""
    try:
        fds = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        fds = list(range(256))
    for fd in fds:
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass
