"""Arguments recovered from the stacks of real kernels, and toys in which a guess would be wrong."""

import base64
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.unit.flow_build import ARCH, GAP, TOY, Fixup, Machine, Named, toy

from kwhy.flow.cfg import Code
from kwhy.flow.frames import Recovered, Recovery

DATA = Path(__file__).with_name("data") / "hang"
CASES = sorted(path.stem for path in DATA.glob("*.json"))
CFA = 0xFFFF_C900_0000_1000
SAVED = {"bx": "rbx", "bp": "rbp", "r12": "r12", "r13": "r13", "r14": "r14", "r15": "r15"}


@dataclass(frozen=True)
class Frame:
    """A call in progress."""

    pc: int
    cfa: int
    entry: int | None


def recorded(name: str) -> tuple[dict[str, Any], Recovered]:
    """The stack in ``data/hang/NAME.json``."""
    data = json.loads((DATA / f"{name}.json").read_text())
    machine = Machine(
        {int(a, 16): zlib.decompress(base64.b64decode(b)) for a, b in data["code"].items()},
        [Named(n, int(a, 16), s) for n, a, s in data["symbols"]],
        [Fixup(*entry) for entry in data["faults"]],
    )
    frames = [Frame(int(pc, 16), int(c, 16), int(e, 16)) for _n, pc, c, e in data["frames"]]
    words = {int(data["sp"], 16) + 8 * i: int(w, 16) for i, w in enumerate(data["words"])}
    saved = {SAVED[name]: int(value, 16) for name, value in data["saved"].items()}
    return data, Recovery(Code(machine, ARCH), ARCH).stack(frames, saved, words.get)


@pytest.mark.parametrize("name", CASES)
def test_what_debug_information_knows_is_recovered_without_it(name: str) -> None:
    """No value differs from DWARF's, and most of DWARF's are found."""
    data, stack = recorded(name)
    agreed = wrong = missing = 0
    for number, (_function, pc, _cfa, _entry) in enumerate(data["frames"]):
        for index, value in data["truth"].get(pc, {}).items():
            found = stack.argument(number, int(index))
            mask = (1 << 8 * found.width) - 1 if found else 0
            if found is None:
                missing += 1
            elif (found.value ^ value) & mask & 0xFFFFFFFF:
                wrong += 1
            else:
                agreed += 1
    assert 0 == wrong
    assert agreed > missing


@pytest.mark.parametrize("name", ["rm-6.12", "rm-7.2"])
def test_the_lock_that_rm_waits_for(name: str) -> None:
    """down_write() was called with the lock of the inode, whatever its registers hold now."""
    data, stack = recorded(name)
    names = [frame[0] for frame in data["frames"]]
    lock = stack.argument(names.index("down_write"), 0)
    again = stack.argument(names.index("rwsem_down_write_slowpath"), 0)
    assert lock is not None
    assert again is not None
    assert lock.value == again.value


def stack_of(machine: Machine, words: dict[int, int], **saved: int) -> Recovered:
    """The innermost function ``f``, called by ``g``: both end their frames at CFA and CFA+0x40."""
    code = Code(machine, ARCH)
    f, g = TOY, TOY + GAP
    inner = next(iter(Recovery(code, ARCH).places(f).calls))  # type: ignore[union-attr]
    outer = next(iter(Recovery(code, ARCH).places(g).calls))  # type: ignore[union-attr]
    frames = [Frame(inner, CFA, f), Frame(outer, CFA + 0x40, g)]
    return Recovery(code, ARCH).stack(frames, saved, words.get)


LEAF = "c3"


def test_argument_kept_in_a_preserved_register() -> None:
    """push rbx; mov rbx, rdi; call: the argument is what rbx holds in the callee."""
    machine = toy(f="53 4889fb e8 @h 5b c3", g="e8 @f c3", h=LEAF)
    found = stack_of(machine, {CFA - 16: 7}, rbx=0x1234).argument(0, 0)
    assert (0x1234, "kept in rbx") == (found and (found.value, found.source))


def test_argument_passed_from_a_register_that_the_callee_saved() -> None:
    """mov rdi, rbx in the caller; the callee pushed rbx: the value is on the stack."""
    machine = toy(f="53 31db e8 @h 5b c3", g="4889df e8 @f c3", h=LEAF)
    found = stack_of(machine, {CFA - 16: 0x99}, rbx=1).argument(0, 0)
    assert (0x99, "passed by the caller: kept in rbx") == (found and (found.value, found.source))


def test_two_places_that_disagree_tell_nothing() -> None:
    """The callee saved rbx and did not change it, and yet they differ: torn memory."""
    machine = toy(f="53 e8 @h 5b c3", g="4889df e8 @f c3", h=LEAF)
    assert stack_of(machine, {CFA - 16: 0x99}, rbx=1).argument(0, 0) is None


def test_argument_of_an_indirect_call_is_not_taken_from_the_caller() -> None:
    """call rax may have gone through another function: nothing is claimed."""
    machine = toy(f="53 31db e8 @h 5b c3", g="4889df ffd0 c3", h=LEAF)
    assert stack_of(machine, {CFA - 16: 0x99}, rbx=1).argument(0, 0) is None


def test_register_that_was_reused_tells_nothing() -> None:
    """The callee's copy was overwritten on one path: unknown, not the other path's value."""
    # push rbx; mov rbx, rdi; test esi, esi; je +2; xor ebx, ebx; call h
    machine = toy(f="53 4889fb 85f6 7402 31db e8 @h 5b c3", g="31ff ffd0 c3", h=LEAF)
    assert stack_of(machine, {CFA - 16: 7}, rbx=0x1234).argument(0, 0) is None


def test_slot_whose_address_was_given_away_tells_nothing() -> None:
    """mov [rsp+8], rdi; lea rdi, [rsp+8]; call: the callee may have changed it."""
    machine = toy(f="4883ec18 48897c2408 488d7c2408 e8 @h 4883c418 c3", g="31ff ffd0 c3", h=LEAF)
    assert stack_of(machine, {CFA - 24: 5}, rbx=1).argument(0, 0) is None


def test_half_of_an_argument() -> None:
    """mov ebx, edi keeps the low half: it serves for an int, and says so."""
    machine = toy(f="53 89fb e8 @h 5b c3", g="31ff ffd0 c3", h=LEAF)
    found = stack_of(machine, {CFA - 16: 7}, rbx=0xFFFFFFFE).argument(0, 0)
    assert (0xFFFFFFFE, 4) == (found and (found.value, found.width))


def test_value_of_an_earlier_round_of_a_loop_is_not_mixed_up() -> None:
    """rbx is loaded anew in each round; what the caller's rdi was in the first is unknown."""
    # push rbx; loop: mov rbx, [rdi]; call h; mov rdi, rbx; jmp loop
    machine = toy(f="53 488b1f e8 @h 4889df ebf3", g="31ff ffd0 c3", h=LEAF)
    assert stack_of(machine, {CFA - 16: 7}, rbx=0x55).argument(0, 0) is None
