"""The emulated memory: loaded once, copied before the first write, put back at no great cost."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import unicorn
from tests.unit.flow_build import toy

from kwhy.arch.x86_64 import ARCH
from kwhy.case.evidence import PAGE, MissingMemory
from kwhy.emulate import compiled
from kwhy.emulate.history import History
from kwhy.emulate.machine import End, Machine
from kwhy.emulate.memory import Change, Memory, Page
from kwhy.emulate.steps import Access, Steps
from kwhy.emulate.track import Track
from kwhy.flow.cfg import Code

DATA = 0xFFFF888000001000
CODE = 0xFFFFFFFF81000000
END = CODE + PAGE // 2


class NoScene:
    """A scene in which whatever cannot simply run on is the end."""

    def fault(self, machine: Machine, address: int, write: bool, why: str) -> End | None:
        """The access that had no page."""
        return End("fault", address, f"{'write' if write else 'read'}: {why}")

    def trap(self, machine: Machine, address: int) -> End | None:
        """A planted trap."""
        return End("stopped", address, "trap")

    def undefined(self, machine: Machine, address: int) -> End | None:
        """ud2."""
        return End("stopped", address, "undefined")

    def counter(self) -> int:
        """The time-stamp counter."""
        return 0x1_0000_0002


def memory(code: bytes) -> Memory:
    """A page of code and two of data, eight bytes of 0x11 at the start of each."""

    def source(page: int) -> Page:
        if page == CODE:
            return Page(code.ljust(PAGE, b"\xf4"), False)
        if DATA <= page <= DATA + PAGE:
            return Page(b"\x11" * 8 + bytes(PAGE - 8))
        raise MissingMemory(page, "nothing is there")

    return Memory(source)


def run(code: str, *, limit: int = 1000, detail: bool = False) -> tuple[End, Machine, Memory]:
    """Run hex machine code with rax pointing to the data page."""
    jump = bytes.fromhex(code)
    space = memory(jump)
    machine = Machine(space, NoScene(), detail)
    machine.set("rax", DATA)
    return machine.run(CODE, CODE + len(jump), limit), machine, space


def test_a_write_is_told_as_a_change_and_undone_by_rollback() -> None:
    """mov [rax], rbx with rbx 0 changes eight bytes; rollback brings them back."""
    end, _machine, space = run("488918")
    assert "returned" == end.kind
    assert [Change(DATA, b"\x11" * 8, bytes(8))] == space.changes()
    space.rollback()
    assert [] == space.changes()
    assert b"\x11" * 8 == space.read(DATA, 8)


def test_a_state_can_be_restored() -> None:
    """What a run wrote can be taken away and put back."""
    _end, _machine, space = run("488918")
    state = space.state()
    space.rollback()
    space.restore(state)
    assert bytes(8) == space.read(DATA, 8)


def test_a_second_run_after_rollback_sees_the_baseline() -> None:
    """The processor does not remember that it may write: the page is copied again."""
    _end, machine, space = run("488918")
    space.rollback()
    machine.run(CODE, CODE + 3)
    assert 1 == len(space.changes())


@pytest.mark.parametrize(
    ("code", "kind"),
    [("488b1c2500100000", "fault"), ("cc", "stopped"), ("0f0b", "stopped"), ("ebfe", "bound"),
     ("31d231c948f7f1", "exception"), ("e460", "stopped")],
)  # fmt: skip
def test_what_cannot_go_on_ends_the_run(code: str, kind: str) -> None:
    """A missing page, a trap, an undefined instruction, a loop, a division by zero, a port."""
    assert kind == run(code)[0].kind


LOOP = "b903000000 488b18 48895808 480fc8 480fc8 ffc9 75ef"
"""mov ecx, 3; then three times: mov rbx, [rax]; mov [rax+8], rbx; bswap rax, twice; dec, jne."""


def told(machine: Machine) -> tuple[Any, ...]:
    """All facts of a run, comparable."""
    track = machine.track
    return track.blocks, track.registers.tolist(), track.accesses.tolist(), track.cuts


@pytest.mark.parametrize(
    "code",
    [
        LOOP,
        "488d7810 4889c6 b903000000 f348a5 90",  # rep movsq
        "4805fb0f0000 488918 488b18",  # a write and a read over the end of a page
        "f0480fb108 480fc108",  # lock cmpxchg, xadd
        "0f1000 0f114010 90 cc",  # movups, and a trap
        "90 0f0b",  # ud2
        "488b18 488b1c2500100000",  # a read where there is no page
    ],
)
def test_compiled_and_python_hooks_write_down_the_same(
    monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Blocks, accesses, registers, and where a run was left are equal."""
    facts = []
    for way in ("", "python"):
        monkeypatch.setenv("KWHY_HOOKS", way)
        _end, machine, space = run(code, detail=True)
        facts.append((told(machine), space.state()))
    assert facts[1] == facts[0]


def test_instructions_and_their_accesses_are_those_of_the_emulator() -> None:
    """What is derived from blocks agrees with the emulator's own hook of each instruction."""
    _end, machine, space = run(LOOP, detail=True)
    seen: list[int] = []
    jump = bytes.fromhex(LOOP)
    again = Machine(memory(jump), NoScene(), detail=True)
    again.set("rax", DATA)
    again._uc.hook_add(unicorn.UC_HOOK_CODE, lambda _uc, at, _size, _data: seen.append(at))
    again.run(CODE, CODE + len(jump))
    steps = Steps(machine.track, ARCH, space.read)
    assert seen == steps.addresses
    texts = [steps.insn(steps.access_step(number)).text for number in range(6)]
    assert ["mov rbx, qword ptr [rax]", "mov qword ptr [rax + 8], rbx"] * 3 == texts


def test_blocks_and_branches_are_told_without_a_list_of_what_ran() -> None:
    """How often each block ran, and which way a branch went, cheaply as in full."""
    _end, machine, space = run(LOOP, detail=True)
    assert Counter(machine.track.blocks) == machine.track.distinct
    history = History(Code(toy(), ARCH), machine.track, space.read)
    assert [True, True, False] == [history.taken(step) for step in history.branches]
    assert all(each.taken == history.taken(step) for step, each in history.branches.items())
    assert {} == Track().distinct


def test_each_instruction_and_access_is_tracked() -> None:
    """mov rbx, [rax]; mov [rax+8], rbx: two steps, a read and a write with their values."""
    _end, machine, space = run("488b18 48895808", detail=True)
    steps = Steps(machine.track, ARCH, space.read)
    assert [CODE, CODE + 3] == steps.addresses
    value = 0x1111111111111111
    assert [Access(0, False, DATA, 8, value)] == steps.accesses(0)
    assert [Access(1, True, DATA + 8, 8, value)] == steps.accesses(1)


def test_an_instruction_that_is_begun_anew_counts_once() -> None:
    """movsq reads, then its write finds no page; made writable, it runs again as one step."""

    class Allows(NoScene):
        def fault(self, machine: Machine, address: int, write: bool, why: str) -> End | None:
            machine.memory.allow_writing(address)
            return None

    jump = bytes.fromhex("4889c6 48bf0020000080888fff 48a5 90")
    pages = {CODE: Page(jump.ljust(PAGE, b"\xf4"), False), DATA: Page(b"\x11" * PAGE)}

    def source(page: int) -> Page:
        return pages.get(page, Page(bytes(PAGE), False))

    space = Memory(source)
    machine = Machine(space, Allows(), detail=True)
    machine.set("rax", DATA)
    assert "returned" == machine.run(CODE, CODE + len(jump)).kind
    steps = Steps(machine.track, ARCH, space.read)
    assert 4 == steps.count
    assert [False, True] == [access.write for access in steps.accesses(2)]
    assert [steps.accesses(2)[1]] == steps.writers(0xFF8F888000002000, 8, 99)


def test_code_that_the_scene_changes_runs_as_it_is_now() -> None:
    """A probe's trap is taken out: the instruction under it runs, not the trap once more."""

    class Unprobes(NoScene):
        def trap(self, machine: Machine, address: int) -> End | None:
            machine.memory.poke(address, b"\x90")
            machine.forget(address, 1)
            machine.set("rip", address)
            return None

    jump = bytes.fromhex("90 cc 488b18")
    machine = Machine(memory(jump), Unprobes(), detail=True)
    machine.set("rax", DATA)
    assert "returned" == machine.run(CODE, CODE + len(jump)).kind
    steps = Steps(machine.track, ARCH, machine.memory.read)
    assert ["nop", "nop", "mov rbx, qword ptr [rax]"] == [steps.insn(n).text for n in range(3)]


def test_time_does_not_pass() -> None:
    """The time-stamp counter is the scene's, whatever the host's shows."""
    _end, machine, _space = run("0f31 48c1e220 4809d0")
    assert NoScene().counter() == machine.get("rax")


def test_what_a_run_wrote_can_go_to_a_copy_of_the_memory() -> None:
    """A state is told by addresses, not by where pages happen to lie."""
    _end, _machine, space = run("488918")
    other = memory(b"")
    other.place(CODE)
    other.restore(space.state())
    assert space.changes() == other.changes()
    assert space.state() == other.state()


def test_states_are_the_same_with_and_without_the_compiled_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What one wrote down the other takes up."""
    states = []
    for way in ("", "python"):
        monkeypatch.setenv("KWHY_HOOKS", way)
        _end, _machine, space = run("488918 488998f80f0000 4889980010 0000".replace(" ", ""))
        states.append(space.state())
        changes = space.changes()
        space.rollback()
        assert [] == space.changes()
        space.restore(states[0])
        assert changes == space.changes()
    assert 2 * 64 + 2 * 16 == len(states[0])
    assert states[1] == states[0]


def test_library_made_from_other_source_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that an older version left beside the module would write another layout."""
    if compiled._library() is None:
        pytest.skip("no compiler")
    old = tmp_path / "hooks.c"
    old.write_bytes(compiled._SOURCE.read_bytes() + b"/* older */")
    made = tmp_path / "old.so"
    monkeypatch.setattr(compiled, "_SOURCE", old)
    assert compiled._compile(made)
    assert compiled._loaded(made, old.read_bytes()) is not None
    assert compiled._loaded(made, b"another") is None
