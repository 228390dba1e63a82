"""``--timeout`` ends a verb in time, whatever it is doing."""

import signal
import time

import pytest

from kwhy.cli.limit import within
from kwhy.errors import LinkError


def test_a_block_that_takes_too_long_is_ended_and_cleans_up() -> None:
    closed = []
    with pytest.raises(LinkError, match=r"no answer after 0\.05 s"), within(0.05):
        try:
            try:
                time.sleep(10)
            except Exception:  # what most code does with what it does not expect
                pytest.fail("was swallowed")
        finally:
            closed.append(True)
    assert [True] == closed


def test_a_block_that_ends_in_time_leaves_no_alarm_behind() -> None:
    with within(5):
        pass
    assert (0.0, 0.0) == signal.getitimer(signal.ITIMER_REAL)


def test_without_a_limit_there_is_none() -> None:
    with within(None):
        assert (0.0, 0.0) == signal.getitimer(signal.ITIMER_REAL)
