"""The function tracer's records in memory: a list of pages, each with an array."""

import struct

import pytest

from kwhy.case.evidence import MissingMemory
from kwhy.case.memory import assemble
from kwhy.kernel.tracesites import read_trace_sites
from kwhy.kernel.types import Member, TypeRef

HEAD, FIRST, SECOND, RECORDS = 0x1000, 0x2000, 0x2020, 0x3000
TEXT = 0xFFFF_FFFF_8100_0000


class Types:
    """The layout of both structs as 6.12 has it, all that is asked."""

    page = {"next": (0, 8), "records": (8, 8), "index": (16, 4)}

    def named(self, name: str) -> TypeRef:
        return name  # type: ignore[return-value]

    def field(self, type: TypeRef, path: str) -> Member | None:
        found = {"struct ftrace_page": self.page, "struct dyn_ftrace": {"ip": (0, 8)}}[str(type)]
        at, size = found[path]
        return Member(path, type, at, size)

    def size(self, _type: TypeRef) -> int:
        return 16


class Memory:
    """Pages by address."""

    def __init__(self, pages: dict[int, bytes]) -> None:
        self.pages = pages

    def read(self, address: int, size: int) -> bytes:
        return assemble(self.pages, address, size)

    def prefetch(self, _ranges: list[tuple[int, int]]) -> None:
        """All is here."""


def memory(first_next: int, count: int = 2) -> Memory:
    page = bytearray(0x1000)
    struct.pack_into("<QQi", page, 0, first_next, RECORDS, count)
    struct.pack_into("<QQi", page, 0x20, 0, RECORDS + 0x100, 0)
    records = bytearray(0x1000)
    struct.pack_into("<QQQQ", records, 0, TEXT + 4, 1 << 63, TEXT + 0x20, 0)
    head = struct.pack("<Q", FIRST).ljust(0x1000, b"\0")
    return Memory({HEAD: head, FIRST: bytes(page), RECORDS: bytes(records)})


def sites(evidence: Memory) -> frozenset[int]:
    return read_trace_sites(evidence, Types(), HEAD)  # type: ignore[arg-type]


def test_all_pages_of_the_list_are_read() -> None:
    """One with two records and one that is empty."""
    assert {TEXT + 4, TEXT + 0x20} == sites(memory(SECOND))


def test_a_list_that_is_a_circle_ends() -> None:
    """Memory may say anything."""
    assert {TEXT + 4, TEXT + 0x20} == sites(memory(FIRST))


@pytest.mark.parametrize("count", [0x7FFFFFFF, 0x10000])
def test_what_is_not_there_is_no_answer(count: int) -> None:
    """More records than any kernel has, or than can be read."""
    with pytest.raises((LookupError, MissingMemory)):
        sites(memory(0, count))
