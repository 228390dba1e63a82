"""What a command writes, forwarded to the desk."""

import os
import select
from typing import Optional

from .process import Child
from .server import Request

TICK = 0.05  # s between two looks at the buffer
READ = 65536


class Output(object):
    """The two output streams of a command, forwarded as far as the desk has room."""

    def __init__(self, request: Request, child: Optional[Child]) -> None:
        self.request = request
        self.open = {} if child is None else {child.out: "out", child.err: "err"}
        for fd in self.open:
            os.set_blocking(fd, False)

    def forward(self) -> None:
        """Send what there is; forgets a stream at its end."""
        for fd, kind in list(self.open.items()):
            while self.request.credit() > 2 * READ:
                try:
                    data = os.read(fd, READ)
                except BlockingIOError:
                    break
                if not data:
                    del self.open[fd]
                    break
                self.request.send(kind, {}, data)

    def rest(self, news: int = -1) -> None:
        """Wait for output, ``news``, or a tick; not for output that the desk has no room for."""
        poll = select.poll()
        if news >= 0:
            poll.register(news, select.POLLIN)
        if self.request.credit() > 2 * READ:
            for fd in self.open:
                poll.register(fd, select.POLLIN)
        poll.poll(int(TICK * 1000))
