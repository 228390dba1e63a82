"""Looking a thread up in memory that changes while it is read."""

from typing import Any

import pytest

from kwhy.cli.spin import READINGS, _Offline
from kwhy.emulate import call
from kwhy.errors import FeatureError, NothingToExplain, UsageError


class Torn:
    """Memory in which the thread is not found, at first or ever."""

    def __init__(self, bad: int) -> None:
        self.bad, self.read = bad, 0

    def __call__(self, *_: Any, **__: Any) -> str:
        self.read += 1
        if self.read <= self.bad:
            raise UsageError("the target has no task 7")
        return "caller"


class Target:
    """Tells whether the thread lives."""

    def __init__(self, lives: bool) -> None:
        self.lives = lives

    def call(self, *_: Any, **__: Any) -> None:
        if not self.lives:
            raise FeatureError("there is no process 7 on the target", "absent")


def looked_up(monkeypatch: pytest.MonkeyPatch, lives: bool, bad: int) -> Any:
    monkeypatch.setattr(call, "Caller", Torn(bad))
    offline = object.__new__(_Offline)
    offline.link, offline.evidence, offline.kernel, offline.tid = Target(lives), None, None, 7  # type: ignore[assignment]
    return offline._found(0)


def test_a_thread_that_lives_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torn reading is no proof that it ended."""
    assert "caller" == looked_up(monkeypatch, lives=True, bad=READINGS - 1)
    with pytest.raises(NothingToExplain, match="changes fast"):
        looked_up(monkeypatch, lives=True, bad=READINGS)


def test_a_thread_that_is_gone_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target says so."""
    with pytest.raises(NothingToExplain, match="ended while it was watched"):
        looked_up(monkeypatch, lives=False, bad=1)
