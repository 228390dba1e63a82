"""The program that copies user pages, and how its records are read."""

import struct

import pytest

from kwhy.agent import userpages
from kwhy.agent.userpages import ABI, HEAD, PAGE, STACK_PAGES, UserPages
from kwhy.diagnose.again import user_pages
from kwhy.record.model import SyscallRecord

_, SIZE, ARGUMENTS, STACK, NUMBER = ABI["x86_64"]
COUNT = len(ARGUMENTS) + STACK_PAGES
STACK_AT = 0x7FFC0000


def reader(*records: bytes) -> UserPages:
    """What reads the records, without a program that makes them."""
    found: UserPages = UserPages.__new__(UserPages)
    found._registers, found._arguments, found._stack = SIZE, ARGUMENTS, STACK
    found._number, found._count, found._maps, found._kept = NUMBER, COUNT, [], {}
    for record in records:
        found._keep(record)
    return found


def made(time: int, tid: int, first: int, page: bytes) -> bytes:
    """A record: the first argument's page could be read, and one of the stack."""
    registers = bytearray(SIZE)
    struct.pack_into("<Q", registers, ARGUMENTS[0], first)
    struct.pack_into("<Q", registers, STACK, STACK_AT + 8)
    struct.pack_into("<Q", registers, NUMBER, 2)
    states = [-14] * COUNT
    states[0] = states[len(ARGUMENTS) + 1] = 0
    pages = [bytes(PAGE)] * COUNT
    pages[0] = page.ljust(PAGE, b"\0")
    pages[len(ARGUMENTS) + 1] = b"s" * PAGE
    head = HEAD.pack(1 << 32 | tid, -22, time)
    return head + bytes(registers) + struct.pack(f"<{COUNT}q", *states) + b"".join(pages)


def call(tid: int, end: int) -> SyscallRecord:
    """A failed call that returned then."""
    return SyscallRecord(1, tid, "x", 2, "open", (), -22, end - 9, end, [], False, [], 0)


def test_each_page_is_kept_once_and_belongs_to_the_call_that_ended_then() -> None:
    """By task and time; a page that could not be read is none."""
    snapshots, pages = reader(
        made(1000, 7, 0x5123, b"old"), made(2_000_000_000, 7, 0x5123, b"new"),
        made(2_000_000_000, 8, 0x9000, b"other"),
    ).collected(1)  # fmt: skip
    assert 4 * PAGE == len(pages)
    found = user_pages(snapshots, pages, call(7, 2_000_000_400))
    assert {0x5000, STACK_AT + PAGE} == set(found)
    assert found[0x5000].startswith(b"new")
    assert b"s" * PAGE == found[STACK_AT + PAGE]
    assert {} == user_pages(snapshots, pages, call(9, 2_000_000_400))
    assert {} == user_pages(snapshots, pages, call(7, 1_000_000_000))


def test_the_last_failing_calls_of_a_process_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number and result; when all together are too many, the oldest of the busiest goes."""
    monkeypatch.setattr(userpages, "KEPT_ALL", 2)
    pages = reader(made(1, 7, 0, b""), made(2, 7, 0, b"x"), made(3, 8, 0, b""))
    assert [(2, -22), (2, -22)] == pages.failed(1)
    assert [2, 3] == [time for time, _, _ in pages.collected(1)[0]]
    assert [] == pages.failed(2)


@pytest.mark.parametrize("nonsense", [None, 7, [1], [[1, 7]], [[99, 7, "x"]], [[99, 7, [[1, 50]]]]])
def test_a_case_may_say_anything(nonsense: object) -> None:
    """Then there are no pages."""
    assert {} == user_pages(nonsense, b"", call(7, 100))


def test_jumps_leave_by_the_last_two_instructions() -> None:
    """In units of eight bytes, from behind the jump."""
    code = userpages._linked([(0x15, 0, 3), bytes(16), bytes(8), bytes(8)])
    assert 5 * 8 == len(code)
    assert 2 == struct.unpack_from("<h", code, 2)[0]
