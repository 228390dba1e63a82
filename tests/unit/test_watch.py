"""What changed between two pictures, and the words of the report."""

import drgn
import pytest

from kwhy.case.evidence import PAGE
from kwhy.cli.watch import _steps
from kwhy.emulate import hits
from kwhy.emulate.picture import Change, Sight, differences
from kwhy.errors import UsageError
from kwhy.report import watch


def test_only_what_changed_is_told() -> None:
    """Values that came, went and changed, in the order of the structure."""
    before = {"a.x": "1", "a.y": "2", "a.p": "0x10", "a.p->z": "3"}
    after = {"a.x": "1", "a.y": "5", "a.p": "NULL", "a.q": "7"}
    expected = [
        Change("a.y", "2", "5"),
        Change("a.p", "0x10", "NULL"),
        Change("a.p->z", "3", None),
        Change("a.q", None, "7"),
    ]
    assert expected == differences(before, after)


def test_report_of_steps() -> None:
    """Each step with its changes; one without says so."""
    moments = [
        watch.Moment(("echo", "a b"), 0, "", [Change("x.n", "1", "2")], 9),
        watch.Moment(("true",), 1, "", [], 9),
    ]
    text = watch.render("x", moments).text().plain
    assert "x: 9 values" in text
    assert "1. echo 'a b'" in text
    assert "x.n  1 → 2" in text
    assert "2. true  (status 1)\n   nothing changed" in text
    assert "x" == watch.as_json("x", moments)["expression"]


def test_steps_are_separated_by_three_dashes() -> None:
    """Two commands are two steps, none means keys; an empty one is a mistake."""
    assert [["a", "b"], ["c"]] == _steps(["a", "b", "---", "c"])
    assert [] == _steps([])
    for words in (["a", "---"], ["---", "a"]):
        with pytest.raises(UsageError):
            _steps(words)


BASE = 0xFFFF888000000000


def sight(memory: dict[int, bytes], count: int) -> Sight:
    """``count`` words, every second one of an array of structures, a bit field and a text."""
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    program.add_memory_segment(
        BASE, 64 * PAGE,
        lambda at, size, _offset, _physical: b"".join(memory.values())[at - BASE :][:size],
    )  # fmt: skip
    word = program.int_type("long", 8, True)
    char = program.int_type("char", 1, True)
    leaves = {
        f"w[{i}]": drgn.Object(program, word, address=BASE + PAGE + 16 * i) for i in range(count)
    }
    leaves["bits"] = drgn.Object(
        program, program.int_type("unsigned int", 4, False), address=BASE + 12,
        bit_offset=5, bit_field_size=3,
    )  # fmt: skip
    leaves["name"] = drgn.Object(program, program.array_type(char, 16), address=BASE + 20)
    values = {path: leaf.format_(type_name=False) for path, leaf in leaves.items()}
    return Sight(values, leaves)


def test_picture_to_fetch_arguments_and_back() -> None:
    """Each value's words are fetched once, neighbours as one argument; put back into the memory
    they give the values at the hit."""
    memory = {BASE + PAGE * i: bytes(PAGE) for i in range(4)}
    planned = hits.plan(sight(memory, 2))
    assert [] == planned.left_out
    assert [(BASE + 8, 4), (BASE + PAGE, 1), (BASE + PAGE + 16, 1)] == planned.runs
    expected = f"p:hit f @{BASE + 8:#x}:x64[4] @{BASE + PAGE:#x}:x64 @{BASE + PAGE + 16:#x}:x64"
    assert expected == planned.definition("f")
    text = int.from_bytes(b"lo, all", "little")
    middle = int.from_bytes(b"\0\0\0\0hel\0", "little")  # the text begins at byte 4
    words = (5 << 37, middle, text, 0, 2**64 - 1, 7)
    still = hits.Hit(1, 0, 9, (0,) * 6)
    first, second = hits.at_hits(memory, planned, [still, hits.Hit(2, 0, 9, words)])
    assert {"w[0]": "0", "w[1]": "0", "bits": "0", "name": '""'} == first
    assert {"w[0]": "-1", "w[1]": "7", "bits": "5", "name": '"hel"'} == second


def test_what_has_no_room_is_named() -> None:
    """An event takes 128 arguments: values behind that are left out, and the report says which."""
    memory = {BASE + PAGE * i: bytes(PAGE) for i in range(4)}
    planned = hits.plan(sight(memory, 130))
    assert hits.MAX_ARGUMENTS == len(planned.runs)
    assert ["w[128]", "w[129]", "bits", "name"] == planned.left_out
    assert len(planned.definition("x" * 100)) < 4096  # a line of kprobe_events
    (note,) = hits.remarks("f", planned, [hits.Hit(1, 0, 9, ())], 0)
    assert "4 of 132 values were not read at the hits" in note


def test_hits_are_told_when_something_had_changed() -> None:
    """A hit at which nothing had changed is only counted."""
    where = {"function": "f", "tid": 9, "cpu": 1, "time": 5_000_000}
    later = {**where, "time": 7_500_000}
    moments = [
        watch.Moment(("a",), 0, "", [], 2, where),
        watch.Moment(("a",), 0, "", [Change("x.n", "1", "2")], 2, later),
        watch.Moment(("a",), 0, "", [], 2, None, ("3 hits were lost",)),
    ]
    text = watch.render("x", moments).text().plain
    assert "1.1 f" not in text
    assert "1.2 f  thread 9, CPU 1, +2.500 ms\n   x.n  1 → 2" in text
    assert "1 hit at which nothing had changed" in text
    assert "3 hits were lost" in text
    assert later == watch.as_json("x", moments)["steps"][1]["hit"]
