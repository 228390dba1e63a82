"""Page faults that a thread takes again and again."""

from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.flow_build import ARCH, GAP, TOY, toy

from kwhy.diagnose.spin_fault import Faults, faults
from kwhy.diagnose.spin_watch import Look, Seen
from kwhy.record.samples import Sample

MACHINE = toy(asm_exc_page_fault="9090 c3", handle_mm_fault="9090 c3", other="9090 c3")
PLACES = {each.name: each.address for each in MACHINE.named}
KERNEL = SimpleNamespace(symbols=SimpleNamespace(at=MACHINE.at, address=PLACES.get))
ENTRY, HANDLER, OTHER = (TOY + n * GAP for n in range(3))


class Hits:
    """What a breakpoint at the handler gives: faults at addresses, within one of another or not."""

    forbidden: str | None = None

    def __init__(self, places: list[int], chain: tuple[int, ...]) -> None:
        self.samples = [
            Sample(HANDLER, n, 0, False, chain, {"rsi": place}) for n, place in enumerate(places)
        ]

    def live_breakpoints(self, *_: Any, **__: Any) -> dict[int, Seen]:
        return {HANDLER: Seen(self.samples, len(self.samples), 0, None)}


def found(
    places: list[int], done: int = 900, chain: tuple[int, ...] = (ENTRY + 2,), outer: int = ENTRY
) -> Faults | None:
    look = Look([], 1.5, {"faults": 100}, {"faults": 100 + done}, [], [])
    samples = [Sample(HANDLER + 1, 0, 0, False, (outer + 1,), {})] * 20
    return faults(KERNEL, ARCH, Hits(places, chain), look, samples, 0.3)  # type: ignore[arg-type]


def test_faults_on_one_page_or_on_many() -> None:
    """The kernel tells how many there were, the handler's argument where."""
    assert Faults(900, frozenset({0x5000})) == found([0x5008, 0x5010, 0x5008])
    assert Faults(900, frozenset({0x5000, 0x6000, 0x7000})) == found([0x5000, 0x6000, 0x7000])


@pytest.mark.parametrize(
    "more",
    [
        {"done": 0},  # the kernel tries one again by itself, or is stuck in one
        {"chain": (OTHER + 2, HANDLER + 2, ENTRY + 2)},  # a fault's handler takes those
        {"outer": OTHER},  # it is somewhere else
    ],
)
def test_what_does_not_come_back_from_a_fault_is_another_loop(more: dict[str, Any]) -> None:
    """Then the frames have to tell."""
    assert found([0x5000] * 9, **more) is None


def test_few_are_none() -> None:
    """A program takes a fault now and then."""
    assert found([0x5000, 0x5000]) is None
