"""The emulated memory: loaded once, copied before the first write, put back at no great cost."""

import pytest

from kwhy.case.evidence import PAGE, MissingMemory
from kwhy.emulate.machine import End, Machine
from kwhy.emulate.memory import Change, Memory, Page

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


def memory(code: bytes) -> Memory:
    """A page of code and a page of data, eight bytes of 0x11 at its start."""

    def source(page: int) -> Page:
        if page == CODE:
            return Page(code.ljust(PAGE, b"\xf4"), False)
        if page == DATA:
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


def test_compiled_and_python_hooks_write_down_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that reads and writes: blocks, steps, accesses and registers are equal."""
    tracks = []
    loop = "b903000000 488b18 48895808 480fc8 480fc8 ffc9 75f0"
    for hooks in ("", "python"):
        monkeypatch.setenv("KWHY_HOOKS", hooks)
        _end, machine, _space = run(loop, detail=True)
        tracks.append(machine.track)
    assert 1 + 3 * 6 == len(tracks[0].steps)
    assert tracks[1] == tracks[0]


def test_detail_tracks_each_instruction_and_access() -> None:
    """mov rbx, [rax]; mov [rax+8], rbx: two steps, a read and a write with their values."""
    _end, machine, _space = run("488b18 48895808", detail=True)
    track = machine.track
    assert [CODE, CODE + 3] == track.steps
    value = 0x1111111111111111
    assert [(0, False, DATA, 8, value), (1, True, DATA + 8, 8, value)] == [
        (a.step, a.write, a.address, a.size, a.value) for a in track.accesses
    ]
