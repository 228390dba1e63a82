"""States that are known again by what was looked at: with the compiled hooks, else never."""

import pytest
from tests.unit.test_emulate_memory import CODE, DATA, END, NoScene, memory, run

from kwhy.case.evidence import PAGE
from kwhy.emulate import compiled
from kwhy.emulate.keys import Keys
from kwhy.emulate.machine import Machine
from kwhy.emulate.memory import Memory
from kwhy.errors import InputError

needs_compiler = pytest.mark.skipif(compiled.library() is None, reason="no compiled hooks")


def set_words(space: Memory, *words: int) -> None:
    for number, word in enumerate(words):
        space.poke(DATA + 8 * number, word.to_bytes(8, "little"))


def known(keys: Keys) -> bytes | None:
    """The key that is found, also when it is one of those that are asked for anew."""
    return next((key for _ in range(4) if (key := keys.find()) is not None), None)


@needs_compiler
def test_a_state_is_known_by_all_that_was_looked_at() -> None:
    """Three words decide, the third only where the first is 1; a fourth does not matter."""
    space = memory(b"")
    keys = Keys(space)
    short, long = (DATA, 8, DATA + 8, 8), (DATA, 8, DATA + 8, 8, DATA + 16, 4)
    for first in (0, 1):
        for second in range(40):
            set_words(space, first, second, 7)
            assert keys.find() is None
            keys.add(long if first else short, b"%d %d" % (first, second))
    set_words(space, 0, 39, 8, 9)
    assert b"0 39" == known(keys)
    set_words(space, 1, 20, 8, 9)
    assert known(keys) is None
    set_words(space, 1, 20, 9 << 32 | 7, 9)
    assert b"1 20" == known(keys)


@needs_compiler
def test_thousands_of_states_keep_their_keys() -> None:
    """The tree grows several times meanwhile."""
    space = memory(b"")
    keys = Keys(space)
    for number in range(20000):
        set_words(space, number % 100, number)
        keys.add((DATA, 8, DATA + 8, 8), number.to_bytes(16, "little"))
    found = set()
    for number in range(0, 20000, 7):
        set_words(space, number % 100, number)
        found.add((keys.find() or number.to_bytes(16, "little")) == number.to_bytes(16, "little"))
    assert {True} == found


@needs_compiler
def test_a_key_that_memory_does_not_decide_is_refused() -> None:
    """Known ones are asked for again now and then, and compared."""
    space = memory(b"")
    keys = Keys(space)
    set_words(space, 3)
    keys.add((DATA, 8), b"one")
    assert {b"one", None} == {keys.find() for _ in range(100)}
    with pytest.raises(InputError, match="two answers for the same memory"):
        keys.add((DATA, 8), b"other")


@needs_compiler
def test_looks_at_more_than_a_number_are_not_kept() -> None:
    space = memory(b"")
    keys = Keys(space)
    for look in ((DATA, 16), (DATA + PAGE - 4, 8)):
        space.read(DATA, 2 * PAGE)
        keys.add(look, b"key")
        assert keys.find() is None


def test_without_the_compiled_hooks_no_state_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWHY_HOOKS", "python")
    keys = Keys(memory(b""))
    keys.add((DATA, 8), b"key")
    assert keys.find() is None


@pytest.mark.parametrize("hooks", ["", "python"])
def test_a_return_to_the_halt_instruction_ends_a_run(
    monkeypatch: pytest.MonkeyPatch, hooks: str
) -> None:
    """``inc rax; ret``: the same is tracked as with an end that the emulator has to watch for."""
    monkeypatch.setenv("KWHY_HOOKS", hooks)
    code = bytes.fromhex("48ffc0c3")
    tracks = []
    for halt in (END, 0):
        space = memory(code)
        machine = Machine(space, NoScene(), halt=halt)
        space.place(DATA)
        space.poke(DATA, END.to_bytes(8, "little"))
        for _ in range(2):
            machine.enter((), DATA)
            machine.set("rax", 41)
            end = machine.run(CODE, END)
            assert ("returned", END, 42) == (end.kind, end.address, machine.result())
        tracks.append(machine.track.blocks)
    assert [(CODE, 4)] == tracks[0] == tracks[1]


def test_a_run_that_comes_to_another_halt_has_not_returned() -> None:
    end, _, _ = run("eb00f4")
    assert "returned" == end.kind
    end, _, _ = run("f490")
    assert "unsupported" == end.kind
