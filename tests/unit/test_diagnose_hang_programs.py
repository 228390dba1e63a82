"""ELF files that are mapped: names and unwind rules, from this interpreter's own C library."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kwhy.diagnose.hang.programs import Program

SP, BP, RETURN = 7, 6, 16


def library() -> tuple[Path, int]:
    """The C library's file and where it is mapped."""
    with Path("/proc/self/maps").open() as maps:
        lines = [line.split() for line in maps if "libc.so.6" in line]
    return Path(lines[0][5]), int(lines[0][0].split("-")[0], 16)


def reader(data: bytes) -> Callable[[int, int], bytes | None]:
    """A file that is wholly in memory."""
    return lambda offset, size: data[offset : offset + size] if size >= 0 else None


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(reader(library()[0].read_bytes()))


def address(name: str) -> int:
    """Where a function was linked for."""
    here = ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value
    assert here is not None
    return here - library()[1]


@pytest.mark.parametrize("name", ["pthread_mutex_lock", "pthread_join", "getppid"])
def test_a_function_is_named_by_any_of_its_bytes(program: Program, name: str) -> None:
    found = program.function(address(name) + 3)
    assert found is not None
    assert name in found[0]
    assert 3 == found[1]


def test_a_function_begins_with_nothing_but_its_return_address(program: Program) -> None:
    rule = program.rule(address("pthread_mutex_lock"))
    assert (SP, 8) == (rule.register, rule.offset)
    assert -8 == rule.saved[RETURN]


def test_what_was_pushed_is_known_where_it_was_pushed(program: Program) -> None:
    start = address("qsort_r")
    rules = [program.rule(start + at) for at in range(32)]
    assert any(BP in rule.saved and rule.offset > 8 for rule in rules)


def test_no_code_has_no_rule(program: Program) -> None:
    with pytest.raises(LookupError):
        program.rule(1)


def test_a_variable_is_no_function(program: Program) -> None:
    stdout = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stdout")
    linked = ctypes.addressof(stdout) - library()[1]
    assert program.function(linked) is None
    assert ("stdout", 0) == program.variable(linked)
    assert program.holds(linked)


@pytest.mark.parametrize("cut", [0, 10, 63, 64, 4096, 100_000])
def test_a_file_of_which_only_the_beginning_is_in_memory(cut: int) -> None:
    data = library()[0].read_bytes()

    def read(offset: int, size: int) -> bytes | None:
        return data[offset : offset + size] if offset + size <= cut else None

    if cut < 4096:
        with pytest.raises(LookupError):
            Program(read)
        return
    partly = Program(read)
    assert partly.function(address("getppid")) is None
    with pytest.raises(LookupError):
        partly.rule(address("getppid"))


def test_random_bytes_raise_nothing_but_lookup_errors() -> None:
    head = library()[0].read_bytes()[:64]
    for _ in range(50):
        data = head + os.urandom(8192)
        try:
            Program(reader(data)).rule(0x1000)
        except LookupError:
            continue
