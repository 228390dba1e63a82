"""What lies around a futex, judged by locks that this machine's C library has made."""

import ctypes
import struct
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from kwhy.diagnose.hang import futexes

LIBC = ctypes.CDLL(None)
RECURSIVE, ERRORCHECK = 1, 2
BASE = 0x10000


def seen(raw: bytes) -> Any:
    """A look at memory in which ``raw`` lies in the middle of a page of zeros."""
    page = bytes(256) + raw + bytes(256)

    def words(_task: object, address: int, size: int) -> tuple[int, ...]:
        at = address - BASE + 256
        return struct.unpack(f"<{size // 4}I", page[at : at + size])

    return SimpleNamespace(user=SimpleNamespace(words=words))


def mutex(**attributes: int) -> bytearray:
    """A mutex that this thread has."""
    chosen, made = ctypes.create_string_buffer(16), ctypes.create_string_buffer(40)
    LIBC.pthread_mutexattr_init(chosen)
    for name, value in attributes.items():
        getattr(LIBC, f"pthread_mutexattr_set{name}")(chosen, value)
    LIBC.pthread_mutex_init(made, chosen)
    LIBC.pthread_mutex_lock(made)
    raw = bytearray(made.raw)
    LIBC.pthread_mutex_unlock(made)
    return raw


def rwlock(take: str) -> bytearray:
    """A read/write lock that this thread has."""
    made = ctypes.create_string_buffer(56)
    LIBC.pthread_rwlock_init(made, None)
    getattr(LIBC, f"pthread_rwlock_{take}")(made)
    raw = bytearray(made.raw)
    LIBC.pthread_rwlock_unlock(made)
    return raw


def told(found: Any) -> tuple[str, int, bool] | None:
    return (found.what, found.owner, found.shared) if found else None


@pytest.mark.parametrize(
    "attributes",
    [{}, {"type": RECURSIVE}, {"type": ERRORCHECK}, {"pshared": 1}, {"robust": 1, "pshared": 1}],
)
def test_a_mutex_that_is_waited_for_tells_its_owner(attributes: dict[str, int]) -> None:
    raw = mutex(**attributes)
    robust = "robust" in attributes
    word = threading.get_native_id() | 1 << 31 if robust else 2  # as a waiter leaves it
    struct.pack_into("<I", raw, 0, word)
    found = futexes._mutex(seen(bytes(raw)), None, BASE)  # type: ignore[arg-type]
    own = ("pthread mutex", threading.get_native_id(), bool(attributes.get("pshared")))
    assert own == told(found)


@pytest.mark.parametrize("word", [0, 1, 3])
def test_a_mutex_that_nobody_waits_for_is_none(word: int) -> None:
    raw = mutex()
    struct.pack_into("<I", raw, 0, word)
    assert futexes._mutex(seen(bytes(raw)), None, BASE) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("at", "value"), [(4, 7), (12, 0), (16, 1 << 12), (24, 5)])
def test_what_only_looks_like_a_mutex_is_none(at: int, value: int) -> None:
    raw = mutex()
    struct.pack_into("<I", raw, 0, 2)
    struct.pack_into("<I", raw, at, value)
    assert futexes._mutex(seen(bytes(raw)), None, BASE) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("at", "word"), [(8, 3), (12, 3)])
def test_a_lock_held_for_writing_tells_its_owner(at: int, word: int) -> None:
    raw = rwlock("wrlock")
    struct.pack_into("<I", raw, at, word)
    found = futexes._rwlock(seen(bytes(raw)), None, BASE + at)  # type: ignore[arg-type]
    assert ("pthread rwlock", threading.get_native_id(), False) == told(found)
    assert found is not None
    assert BASE == found.address


def test_a_lock_held_for_reading_has_no_owner() -> None:
    raw = rwlock("rdlock")
    struct.pack_into("<I", raw, 8, 2)
    found = futexes._rwlock(seen(bytes(raw)), None, BASE + 8)  # type: ignore[arg-type]
    assert ("pthread rwlock", 0, False) == told(found)
    assert found is not None
    assert found.note.startswith("1 reader holds it")


def test_other_words_are_no_lock() -> None:
    for raw in (bytes(64), b"\xff" * 64, struct.pack("<16I", *range(16))):
        for at in (0, 8, 12):
            look = seen(raw)
            assert futexes._mutex(look, None, BASE + at) is None  # type: ignore[arg-type]
            assert futexes._rwlock(look, None, BASE + at) is None  # type: ignore[arg-type]
