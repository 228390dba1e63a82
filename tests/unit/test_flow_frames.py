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
from kwhy.flow.frames import Recovered, Recovery, SystemCall

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


def stack_of(
    machine: Machine,
    words: dict[int, int],
    memory: dict[int, int] | None = None,
    call: SystemCall | None = None,
    **saved: int,
) -> Recovered:
    """The innermost function ``f``, called by ``g``: both end their frames at CFA and CFA+0x40."""
    code = Code(machine, ARCH)
    f, g = TOY, TOY + GAP
    inner = next(iter(Recovery(code, ARCH).places(f).calls))  # type: ignore[union-attr]
    outer = next(iter(Recovery(code, ARCH).places(g).calls))  # type: ignore[union-attr]
    frames = [Frame(inner, CFA, f), Frame(outer, CFA + 0x40, g)]
    held = memory or {}
    return Recovery(code, ARCH).stack(
        frames, saved, words.get, lambda address, _size: held.get(address), call
    )


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


@pytest.mark.parametrize(("second", "expected"), [("03", 0x99), ("4308", None)])
def test_a_function_pointer_loaded_on_two_paths(second: str, expected: int | None) -> None:
    """It is the same if both loaded the same place; if not, who called is not known."""
    # test esi, esi; je over; mov rax, [rbx]; jmp; over: mov rax, [rbx] or [rbx+8]; mov rdi, rbx
    g = f"85f6 7405 488b03 eb0{len(second) // 2 + 2} 488b{second} 4889df ffd0 c3"
    machine = toy(f="53 31db e8 @h 5b c3", g=g, h=LEAF)
    memory = {0x99: TOY, 0xA1: TOY + 2 * GAP}
    found = stack_of(machine, {CFA - 16: 0x99}, memory, rbx=1).argument(0, 0)
    assert expected == (found and found.value)


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


SAVES = "53 31db e8 @h 5b c3"
"""push rbx; xor ebx, ebx; call h: what the caller had in rbx is on the stack, its rdi is lost."""


def test_argument_of_an_indirect_call_whose_target_memory_tells() -> None:
    """mov rdi, rbx; call [rbx+8]: taken if that place names this very function, else not."""
    machine = toy(f=SAVES, g="4889df ff5308 c3", h=LEAF)
    found = stack_of(machine, {CFA - 16: 0x99}, {0xA1: TOY}, rbx=1).argument(0, 0)
    assert (0x99, "passed by the caller: kept in rbx") == (
        found and (found.value, found.source)
    )
    assert stack_of(machine, {CFA - 16: 0x99}, {0xA1: TOY + 2 * GAP}, rbx=1).argument(0, 0) is None


def test_argument_of_a_tail_call() -> None:
    """The function that was called added 8 to its argument and jumped here: add rdi, 8; jmp f."""
    machine = toy(f=SAVES, g="4889df e8 @t c3", h=LEAF, t="4883c708 e9 @f")
    found = stack_of(machine, {CFA - 16: 0x99}, rbx=1).argument(0, 0)
    assert 0xA1 == (found and found.value)


def test_tail_calls_that_disagree_tell_nothing() -> None:
    """One way adds 8 to rdi, the other does not; rsi is the same on both."""
    machine = toy(
        f=SAVES, g="4889df 4889de e8 @t c3", h=LEAF, t="85f6 7405 e9 @f 4883c708 e9 @f"
    )  # fmt: skip
    stack = stack_of(machine, {CFA - 16: 0x99}, rbx=1)
    second = stack.argument(0, 1)
    assert stack.argument(0, 0) is None
    assert 0x99 == (second and second.value)


def test_a_way_that_is_not_known_may_lead_here_too() -> None:
    """test esi, esi; je +5; jmp f; jmp rax: nothing is claimed."""
    machine = toy(f=SAVES, g="4889df e8 @t c3", h=LEAF, t="85f6 7405 e9 @f ffe0")
    assert stack_of(machine, {CFA - 16: 0x99}, rbx=1).argument(0, 0) is None


def test_a_function_that_does_not_lead_here_was_not_called() -> None:
    """g calls h, and yet f runs: the stack is torn."""
    machine = toy(f=SAVES, g="4889df e8 @h c3", h=LEAF)
    assert stack_of(machine, {CFA - 16: 0x99}, rbx=1).argument(0, 0) is None


def test_arguments_of_a_system_call_are_in_the_users_registers() -> None:
    """mov rdi, [rdi+0x70]; jmp f: only while those registers stay what they are."""
    machine = toy(f=SAVES, g="ffd0 c3", h=LEAF, t="488b7f70 e9 @f")
    regs, function = CFA + 0x80, TOY + 3 * GAP
    words = {CFA - 16: 0x99, regs + 0x70: 0x77}
    kept = SystemCall(0, function, regs, kept=frozenset({regs + 0x70}))
    found = stack_of(machine, words, call=kept, rbx=1).argument(0, 0)
    assert (0x77, "passed by the caller: the user's registers") == (
        found and (found.value, found.source)
    )
    changing = SystemCall(0, function, regs)
    assert stack_of(machine, words, call=changing, rbx=1).argument(0, 0) is None


def test_what_runs_after_a_system_call_got_no_arguments_from_it() -> None:
    """The dispatcher calls f by name: the system call's function is no longer there."""
    machine = toy(f=SAVES, g="4889df e8 @f c3", h=LEAF, t="488b7f70 e9 @f")
    call = SystemCall(0, TOY + 3 * GAP, CFA + 0x80, kept=frozenset({CFA + 0xF0}))
    found = stack_of(machine, {CFA - 16: 0x99, CFA + 0xF0: 7}, call=call, rbx=1).argument(0, 0)
    assert 0x99 == (found and found.value)


def test_register_that_was_exchanged_with_memory() -> None:
    """mov rbx, rdi; xchg [rsi], rbx: rbx is no argument any more."""
    machine = toy(f="53 4889fb 48871e e8 @h 5b c3", g="31ff ffd0 c3", h=LEAF)
    assert stack_of(machine, {CFA - 16: 7}, rbx=0x1234).argument(0, 0) is None


def test_slot_that_a_string_instruction_filled() -> None:
    """mov [rsp+8], rdi; lea rdi, [rsp+8]; xor eax, eax; mov ecx, 1; rep stosq."""
    machine = toy(
        f="4883ec18 48897c2408 488d7c2408 31c0 b901000000 f348ab 31ff e8 @h 4883c418 c3",
        g="31ff ffd0 c3", h=LEAF,
    )  # fmt: skip
    assert stack_of(machine, {CFA - 24: 5}, rbx=1).argument(0, 0) is None


def test_path_that_ends_in_a_panic_says_nothing_of_the_others() -> None:
    """mov rbx, rdi; test esi, esi; je +7; xor ebx, ebx; call panic; call h."""
    machine = toy(
        f="53 4889fb 85f6 7407 31db e8 @panic e8 @h 5b c3", g="31ff ffd0 c3", h=LEAF, panic=LEAF
    )  # fmt: skip
    code = Code(machine, ARCH)
    places = Recovery(code, ARCH).places(TOY)
    assert places is not None
    pc = max(places.calls)
    frames = [Frame(pc, CFA, TOY), Frame(TOY + GAP + 4, CFA + 0x40, TOY + GAP)]
    found = Recovery(code, ARCH).stack(frames, {"rbx": 0x55}, lambda _address: None).argument(0, 0)
    assert (0x55, "kept in rbx") == (found and (found.value, found.source))
