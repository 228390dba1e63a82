"""Evidence from a live target: batched, remembered, and never asked twice."""

from pathlib import Path
from typing import Any

import pytest

from kwhy.case import diskcache
from kwhy.case.casefile import CaseFile
from kwhy.case.evidence import PAGE, Evidence, MissingMemory
from kwhy.case.live import LiveEvidence
from kwhy.case.memory import assemble, pages_of, runs
from kwhy.errors import FeatureError

BASE = 0xFFFF_FFFF_8100_0000


class Target:
    """A link to 8 pages of memory from BASE on, without the pages in ``holes``."""

    def __init__(self, holes: tuple[int, ...] = (), forbidden: bool = False) -> None:
        kernel = {"release": "6.12", "build_id": "ab" * 20, "arch": "x86_64"}
        self.hello: dict[str, Any] = {"kernel": kernel}
        self.holes, self.forbidden = holes, forbidden
        self.asked: list[list[tuple[int, int]]] = []
        self.blobs: list[str] = []

    def byte(self, address: int) -> int | None:
        number = (address - BASE) // PAGE
        return number if 0 <= number < 8 and number not in self.holes else None

    def read_memory(self, ranges: list[tuple[int, int]]) -> list[bytes | None]:
        """As the agent does: a range ends at the first byte that is not there."""
        if self.forbidden:
            raise FeatureError("no kernel memory", "kcore")
        self.asked.append(ranges)
        out: list[bytes | None] = []
        for address, size in ranges:
            piece = b""
            for page in range(address, address + size, PAGE):
                if (value := self.byte(page)) is None:
                    break
                piece += bytes([value]) * PAGE
            out.append(piece or None)
        return out

    def blob(self, name: str) -> bytes | None:
        """Two blobs exist."""
        self.blobs.append(name)
        if name == "forbidden":
            raise FeatureError("may not be read", "kallsyms")
        return {"btf/vmlinux": b"types", "kmsg": b"log"}.get(name)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWHY_CACHE", str(tmp_path / "cache"))


def test_memory_comes_in_pages_and_once() -> None:
    """A second read of the same pages asks nothing."""
    target = Target()
    evidence = LiveEvidence(target)
    assert b"\0\1" == evidence.read(BASE + PAGE - 1, 2)
    assert b"\1" * 8 == evidence.read(BASE + PAGE + 8, 8)
    assert [[(BASE, 2 * PAGE)]] == target.asked
    assert isinstance(evidence, Evidence)


def test_prefetch_joins_neighbours_in_one_request() -> None:
    """Many ranges, one exchange; what is here already is left out."""
    target = Target()
    evidence = LiveEvidence(target)
    evidence.read(BASE, 1)
    evidence.prefetch([(BASE + 10, 2 * PAGE), (BASE + 5 * PAGE, 1), (BASE + 2 * PAGE, 8)])
    assert [(BASE + PAGE, 2 * PAGE), (BASE + 5 * PAGE, PAGE)] == target.asked[-1]
    assert 2 == len(target.asked)


def test_a_hole_does_not_hide_the_pages_behind_it() -> None:
    """A run that ends early is asked again page by page; the hole stays missing."""
    target = Target(holes=(2,))
    evidence = LiveEvidence(target)
    evidence.prefetch([(BASE, 5 * PAGE)])
    assert b"\3" == evidence.read(BASE + 3 * PAGE, 1)
    asked = len(target.asked)
    for _ in range(2):
        with pytest.raises(MissingMemory):
            evidence.read(BASE + 2 * PAGE, 4)
    assert asked == len(target.asked)


def test_the_memory_of_a_moment_comes_back_and_stays() -> None:
    """Also what was not to be had then; until the target is asked as it is now."""
    target = Target(holes=(1,))
    evidence = LiveEvidence(target)
    evidence.prefetch([(BASE, 2 * PAGE)])
    then = evidence.moment()
    target.holes = (0,)
    evidence.reread(lambda page: False)
    evidence.prefetch([(BASE + 2 * PAGE, 1)])
    with pytest.raises(MissingMemory):
        evidence.read(BASE, 1)
    evidence.go_back(then)
    evidence.reread(lambda page: False)
    assert b"\0\2" == evidence.read(BASE, 1) + evidence.read(BASE + 2 * PAGE, 1)
    with pytest.raises(MissingMemory):
        evidence.read(BASE + PAGE, 1)
    evidence.go_back(None)
    evidence.reread(lambda page: False)
    assert b"\1" == evidence.read(BASE + PAGE, 1)


def test_memory_that_may_not_be_read_is_missing() -> None:
    """No privilege: MissingMemory, and the target is not asked again."""
    evidence = LiveEvidence(Target(forbidden=True))
    for _ in range(2):
        with pytest.raises(MissingMemory):
            evidence.read(BASE, 4)


@pytest.mark.parametrize(("address", "size"), [(-1, 4), ((1 << 64) - 2, 4), (BASE, -1)])
def test_impossible_ranges_are_missing(address: int, size: int) -> None:
    """Nothing outside of 64 bits is asked for."""
    with pytest.raises(MissingMemory):
        LiveEvidence(Target()).read(address, size)


def test_absent_blobs_are_remembered_as_absent() -> None:
    """Absence and refusal are facts too."""
    target = Target()
    evidence = LiveEvidence(target)
    for _ in range(2):
        assert None is evidence.blob("nothing")
        assert None is evidence.blob("forbidden")
        assert b"log" == evidence.blob("kmsg")
    assert ["nothing", "forbidden", "kmsg"] == target.blobs


def test_types_are_kept_on_disk_by_build_id() -> None:
    """The next run does not fetch the kernel's BTF again; another build does."""
    assert b"types" == LiveEvidence(Target()).blob("btf/vmlinux")
    again = Target()
    assert b"types" == LiveEvidence(again).blob("btf/vmlinux")
    assert [] == again.blobs
    other = Target()
    other.hello["kernel"]["build_id"] = "cd" * 20
    LiveEvidence(other).blob("btf/vmlinux")
    assert ["btf/vmlinux"] == other.blobs


def test_a_damaged_or_forbidden_cache_is_no_error(tmp_path: Path) -> None:
    """What cannot be read or written is fetched; odd build-ids never become paths."""
    diskcache.store("ab" * 20, "x", b"data")
    assert b"data" == diskcache.load("ab" * 20, "x")
    next((tmp_path / "cache" / "kernel").rglob("x.zst")).write_bytes(b"junk")
    assert None is diskcache.load("ab" * 20, "x")
    for odd in ("", "../../x", "ab/../cd" * 4):
        diskcache.store(odd, "x", b"data")
        assert None is diskcache.load(odd, "x")


def test_what_was_asked_is_what_a_case_holds(tmp_path: Path) -> None:
    """Saved and opened again, the evidence answers the same without the target."""
    evidence = LiveEvidence(Target(holes=(2,)))
    evidence.read(BASE, 2 * PAGE)
    evidence.blob("kmsg")
    evidence.save(tmp_path / "x.kwhy")
    case = CaseFile(tmp_path / "x.kwhy")
    assert evidence.read(BASE, 2 * PAGE) == case.read(BASE, 2 * PAGE)
    assert b"log" == case.blob("kmsg")
    assert "6.12" == case.facts.release
    with pytest.raises(MissingMemory):
        case.read(BASE + 2 * PAGE, 1)


def test_pages_and_runs() -> None:
    """Ranges become sorted pages, pages become runs of bounded length."""
    assert [0, PAGE, 3 * PAGE] == pages_of([(3 * PAGE + 5, 1), (10, PAGE), (0, 0), (-5, 3)])
    assert [(0, 2 * PAGE), (3 * PAGE, PAGE)] == runs([0, PAGE, 3 * PAGE])
    assert [(0, PAGE), (PAGE, PAGE)] == runs([0, PAGE], longest=1)
    assert b"" == assemble({}, 5, 0)
