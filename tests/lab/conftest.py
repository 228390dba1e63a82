"""Guests for the tests: one of each series for the whole session, booted when first asked for."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kwhy import lab
from kwhy.link import Link

#: Series to test, newest known to behave first; ``KWHY_SERIES="6.12 7"`` restricts them.
SERIES = os.environ.get("KWHY_SERIES", "6.12 5.10 6.1 7").split()

Guests = Callable[[str], lab.Guest]
Links = Callable[[str], Link]
Dumps = Callable[[str], Path]


@pytest.fixture(scope="session")
def guests() -> Iterator[Guests]:
    """``guests("6.12")``: the session's guest of that series; ``--lab GUEST.name`` reaches it.

    They die with the test process, however it ends.
    """
    running: dict[str, lab.Guest] = {}
    with ExitStack() as stack:

        def guest(series: str) -> lab.Guest:
            if series not in running:
                name = f"session-{os.getpid()}-{series}"
                started = lab.start(series, name, lab.Settings(keep=False))
                running[series] = stack.enter_context(started)
            return running[series]

        yield guest


@pytest.fixture(scope="session")
def dumps(guests: Guests, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dumps]:
    """``dumps("6.12")``: the memory of the session's guest, as it was when first asked for."""
    made: dict[str, Path] = {}

    def dump(series: str) -> Path:
        if series not in made:
            path = tmp_path_factory.mktemp("dump") / f"{series}.core"
            guests(series).dump(path)
            made[series] = path
        return made[series]

    yield dump
    for path in made.values():
        path.unlink()


@pytest.fixture
def links(guests: Guests) -> Iterator[Links]:
    """``links("6.12")``: a link to a fresh agent in the session's guest, closed after the test."""
    with ExitStack() as stack:

        def link(series: str) -> Link:
            return stack.enter_context(lab.open_link(guests(series)))

        yield link


@pytest.fixture(params=SERIES)
def series(request: pytest.FixtureRequest) -> str:
    """The test runs on each series."""
    wanted = request.param
    assert isinstance(wanted, str)
    return wanted
