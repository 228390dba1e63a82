"""Bytes in and out of descriptors, never blocking for longer than asked.

Works on anything ``poll`` understands: pipes, sockets, a virtio port that is both input and output.
"""

import errno
import fcntl
import os
import select
import time
from typing import Callable, Optional

READ_SIZE = 256 << 10


class Hangup(Exception):
    """The other end is gone."""


class Wire(object):
    """A byte stream over one or two descriptors, which are made non-blocking.

    O_NONBLOCK belongs to the open file, which other processes may share; :meth:`restore` puts the
    flags back.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self._flags = [(fd, fcntl.fcntl(fd, fcntl.F_GETFL)) for fd in (read_fd, write_fd)]
        for fd, flags in self._flags:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)

    def restore(self) -> None:
        """Put the descriptors' flags back as they were found."""
        for fd, flags in self._flags:
            try:
                fcntl.fcntl(fd, fcntl.F_SETFL, flags)
            except OSError:
                pass

    def read(self, timeout: float) -> Optional[bytes]:
        """Some bytes; b"" at the end of the stream; None when nothing came in ``timeout`` s."""
        poll = select.poll()
        poll.register(self.read_fd, select.POLLIN)
        if not poll.poll(int(timeout * 1000)):
            return None
        try:
            return os.read(self.read_fd, READ_SIZE)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return None
            return b""

    def write(self, data: bytes, given_up: Callable[[], bool], patience: float = 60.0) -> None:
        """Write all of ``data``.

        Raises Hangup when the other end is gone, takes nothing for ``patience`` seconds, or when
        ``given_up()`` turns true while waiting.
        """
        view = memoryview(data)
        poll = select.poll()
        poll.register(self.write_fd, select.POLLOUT)
        last = time.monotonic()
        while len(view):
            try:
                done = os.write(self.write_fd, view)
                view = view[done:]
                last = time.monotonic()
                continue
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    raise Hangup(os.strerror(error.errno or 0))
            if given_up() or time.monotonic() - last > patience:
                raise Hangup("the other end takes no data")
            for _, events in poll.poll(500):
                if events & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                    raise Hangup("the other end hung up")
