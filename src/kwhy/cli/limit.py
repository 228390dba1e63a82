"""``--timeout``: an answer within a time, or none."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kwhy.errors import LinkError


class _Over(BaseException):
    """Not to be caught by what it interrupts."""


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """The block ends in time, or LinkError is raised; None: it may take as long as it likes.

    Only in the main thread. What the block has opened is closed after that as usual.
    """
    if seconds is None:
        yield
        return

    def over(_number: int, _frame: FrameType | None) -> None:
        raise _Over

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Over:
        raise LinkError(
            f"there was no answer after {seconds:g} s (--timeout): give it more time, or name a "
            "process to look at"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
