"""Loops, what they depend on, and samples: on pieces recorded from the lab's spin module."""

import base64
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.unit.flow_build import ARCH, TOY, Machine, Named, toy

from kwhy.diagnose.spin_frames import Place, shared
from kwhy.diagnose.spin_loop import candidates, classify
from kwhy.errors import InputError
from kwhy.flow.cfg import Code, Function
from kwhy.flow.loops import Loop, evaluate, loops, segment_at, sources
from kwhy.record.samples import Sample, decode

DATA = Path(__file__).with_name("data") / "spin"


@dataclass(frozen=True)
class Recorded:
    """A thread that spun."""

    facts: dict[str, Any]
    function: Function
    samples: list[Sample]
    rounds: list[Sample]

    @property
    def loop(self) -> Loop:
        """The loop whose head was watched."""
        return next(each for each in loops(self.function) if each.head == self.facts["head"])

    def behaviours(self) -> set[str]:
        """How the registers that the ways out depend on behaved over the rounds."""
        turns = [self.function.segments[at] for at, _ in self.loop.exits]
        needs = [sources(self.function, ARCH, self.loop, turn).carried for turn in turns]
        seen = [
            classify([each.registers[name] for each in self.rounds])
            for name in sorted(frozenset().union(*needs))
        ]
        return {each.how for each in seen if each is not None}


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text)) if text else b""


def recorded(name: str) -> Recorded:
    facts = json.loads((DATA / f"{name}.json").read_text())
    names = sorted(facts["registers"], key=lambda each: facts["registers"][each])
    code = bytes.fromhex(facts["code"])
    machine = Machine(
        {facts["address"]: code}, [Named(facts["function"], facts["address"], len(code))]
    )
    return Recorded(
        facts,
        Code(machine, ARCH).function(facts["address"]),
        decode(unpacked(facts["samples"]), True, names),
        decode(unpacked(facts["rounds"]), False, names),
    )


@pytest.mark.parametrize("name", ["masked", "circle", "slow", "lock"])
def test_samples_of_a_real_kernel_are_understood(name: str) -> None:
    """Records decode to kernel addresses, and the way up leads to the system call's entry."""
    found = recorded(name)
    assert found.samples
    outermost = {sample.chain[-1] for sample in found.samples}
    assert len(outermost) == 1
    assert all(sample.address >> 63 and not sample.user for sample in found.samples)
    assert all(sample.registers["rip"] == sample.address for sample in found.samples)


@pytest.mark.parametrize("name", ["masked", "circle", "slow"])
def test_smallest_loop_with_the_samples(name: str) -> None:
    """The loop that holds every sample is the one whose head the breakpoint counted."""
    found = recorded(name)
    end = found.facts["address"] + len(found.facts["code"]) // 2
    stacks = [[*(a - 1 for a in reversed(s.chain)), s.address] for s in found.samples]
    inside = [next(a for a in each if found.facts["address"] <= a < end) for each in stacks]
    place = Place(found.facts["address"], name, tuple(inside), None, ())
    loop, count = candidates(found.function, place)[0]
    assert (found.facts["head"], len(inside)) == (loop.head, count)


def test_a_list_that_is_a_circle_goes_round() -> None:
    """The register that the way out depends on takes the same values again and again."""
    found = recorded("circle")
    assert {"cycle"} == found.behaviours()


def test_a_slow_loop_counts() -> None:
    """The counter that ends the slow loop is seen to move."""
    found = recorded("slow")
    assert "counter" in found.behaviours()


def test_a_loop_that_depends_on_a_callee_says_so() -> None:
    """The way out of the loop with two calls depends on what the first of them returns."""
    found = recorded("masked")
    (at,) = {at for at, _ in found.loop.exits}
    turn = found.function.segments[at]
    found_sources = sources(found.function, ARCH, found.loop, turn)
    assert 1 == len(found_sources.results)
    assert not found_sources.loads


def test_nested_loops_are_ordered() -> None:
    """Of two loops one in the other the inner one comes first, and neither leaves out its head."""
    # inc eax; (inc ecx; jne back); jne outer; ret
    machine = toy(nest="ffc0 ffc1 75fc 75f8 c3")
    found = loops(Code(machine, ARCH).function(TOY))
    assert [TOY + 2, TOY] == [loop.head for loop in found]
    assert found[0].body < found[1].body


def test_a_function_without_loop_has_none() -> None:
    """Straight code has no loop."""
    machine = toy(plain="ffc0 c3")
    function = Code(machine, ARCH).function(TOY)
    assert [] == loops(function)
    assert segment_at(function, TOY + 1) is not None
    assert segment_at(function, TOY + 64) is None


@pytest.mark.parametrize(
    ("values", "how"),
    [
        ([5, 5, 5], "constant"),
        ([1, 2, 4, 9], "counter"),
        ([9, 8, 7], "counter"),
        ([(1 << 64) - 1, 0, 1], "counter"),
        ([1, 2, 1, 2, 1, 2], "cycle"),
        ([1, 2, 1, 3, 7, 5], "varying"),
    ],
)
def test_values_are_classified(values: list[int], how: str) -> None:
    """A number that moves one way counts, one that comes around is a cycle."""
    found = classify(values)
    assert found is not None
    assert how == found.how


def test_nothing_seen_is_nothing_known() -> None:
    """Without rounds there is no claim."""
    assert classify([]) is None


def test_shared_frames_end_where_samples_part() -> None:
    """The outermost frames that all samples have in common; the innermost is never among them."""
    assert 2 == shared([[1, 2, 3], [1, 2, 4, 5]])[0]
    assert 2 == shared([[1, 2, 3], [1, 2, 3]])[0]
    assert 0 == shared([[1], [1, 2]])[0]


def test_a_stray_sample_does_not_count() -> None:
    """One sample of many from elsewhere does not hide where the others are."""
    count, together = shared([[9, 8], *[[1, 2, number] for number in range(20)]])
    assert (2, 20) == (count, len(together))


def test_an_address_is_worked_out_from_registers() -> None:
    """Expressions of registers and numbers have a value, those of memory have none."""
    place = ("bin", "add", 8, ("reg", "rdi", 8), ("const", 8))
    assert 0x108 == evaluate(place, {"rdi": 0x100})
    assert evaluate(place, {}) is None
    assert evaluate(("load", place, 8), {"rdi": 1}) is None


@pytest.mark.parametrize(
    "data",
    [b"\x09\0\0\0\0\0\x03\0", b"\x09", b"\x09\0\0\0\0\0\xff\xff" + b"\0" * 64],
)
def test_damaged_samples_are_refused(data: bytes) -> None:
    """What no kernel wrote is an input error, never a crash."""
    with pytest.raises(InputError):
        decode(data, True, ["rax"])
