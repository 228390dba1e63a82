"""Damaged dumps: whatever is wrong with one, ``kwhy call`` ends soon, in one line, with a status.

Bytes of the headers, notes and tables of a real dump are changed at random, in place, and put back.
"""

import contextlib
import io
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.conftest import Dumps, Guests

from kwhy.cli.main import main

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MUTATIONS = 250
WITHIN = 60  # seconds
CALL = "find_task_by_vpid(1)"
ELF_HEADERS = 8192
"""ELF header, program headers and notes of a dump by QEMU lie in its first bytes."""
KDUMP_HEADERS = 2 * 4096
"""The header of a kdump file and the sub-header, a block each."""
KDUMP_TABLES = 1 << 18
"""And the bitmaps and the first of the page descriptors behind them, few of which are asked for."""


def _run(path: Path, debuginfo: str) -> tuple[int, str]:
    """``kwhy call`` in a child: its exit status (128 + the signal that killed it), what it said."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(WITHIN)
        status, text = 70, io.StringIO()
        try:
            with contextlib.redirect_stderr(text), contextlib.redirect_stdout(io.StringIO()):
                status = main(["call", "--core", str(path), CALL, "--debuginfo", debuginfo])
        except BaseException as error:  # whatever gets here is a bug: the caller shows it
            text.write(f"{type(error).__name__}: {error}")
        os.write(writer, text.getvalue().encode()[:4000])
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as out:
        said = out.read().decode()
    _, code = os.waitpid(pid, 0)
    return (os.WEXITSTATUS(code) if os.WIFEXITED(code) else 128 + os.WTERMSIG(code)), said


@contextlib.contextmanager
def changed(path: Path, places: dict[int, bytes]) -> Iterator[None]:
    """The file with other bytes at some offsets, for the length of the block."""
    with path.open("r+b") as file:
        before = {}
        for at, data in places.items():
            file.seek(at)
            before[at] = file.read(len(data))
            file.seek(at)
            file.write(data)
        file.flush()
        try:
            yield
        finally:
            for at, data in before.items():
                file.seek(at)
                file.write(data)


def _places(chance: random.Random, size: int) -> dict[int, bytes]:
    """One to eight bytes at one to four places below ``size``."""
    return {
        chance.randrange(size): chance.choice(
            (chance.randbytes(1), chance.randbytes(4), b"\xff" * 8, bytes(8))
        )
        for _ in range(chance.randrange(1, 5))
    }


def _judge(path: Path, sizes: tuple[int, ...], seed: int) -> dict[int, int]:
    """Each change is below one of the ``sizes``; how often each exit status came."""
    chance = random.Random(seed)
    bad, ends = [], dict[int, int]()
    for number in range(MUTATIONS):
        places = _places(chance, sizes[number % len(sizes)])
        with changed(path, places):
            status, said = _run(path, ("auto", "none")[number // 3 % 2])
        ends[status] = ends.get(status, 0) + 1
        lines = said.strip().splitlines()
        if status not in (0, 1, 3, 4) or (status and len(lines) > 1) or "Traceback" in said:
            bad.append((places, status, said[-600:]))
    assert [] == bad
    return ends


@pytest.fixture
def elf(dumps: Dumps, tmp_path: Path) -> Path:
    """A copy of the guest's dump."""
    return Path(shutil.copy(dumps("6.12"), tmp_path / "elf.core"))


@pytest.fixture
def kdump(guests: Guests, tmp_path: Path) -> Path:
    """The guest's memory as a compressed kdump file."""
    path = tmp_path / "kdump.core"
    guests("6.12").dump(path, "kdump-zlib")
    return path


def test_damaged_elf_headers(elf: Path) -> None:
    """The headers and notes of an ELF dump."""
    ends = _judge(elf, (ELF_HEADERS,), 1)
    assert ends[0] < MUTATIONS * 3 // 4, ends  # the damage is felt


def test_damaged_kdump_tables(kdump: Path) -> None:
    """The headers, bitmaps and page descriptors of a kdump file."""
    ends = _judge(kdump, (KDUMP_HEADERS, KDUMP_HEADERS, KDUMP_TABLES), 2)
    assert ends[0] < MUTATIONS * 3 // 4, ends


@pytest.mark.parametrize("kind", ["elf", "kdump"])
def test_truncated_dumps(kind: str, request: pytest.FixtureRequest) -> None:
    """A dump that ends early is an input error, wherever it ends."""
    path: Path = request.getfixturevalue(kind)
    length = path.stat().st_size
    for size in (length // 2, length // 3, 5000, 4096, 64, 63, 1, 0):
        os.truncate(path, size)
        status, said = _run(path, "auto")
        assert (status, len(said.strip().splitlines())) == (4, 1), (size, said)
