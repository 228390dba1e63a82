"""Errnos and conditions in words."""

import json
from pathlib import Path

import pytest

from kwhy.report import words
from kwhy.verdict import Condition, Operand, Verdict

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize(
    ("expected", "value"),
    [("-EIO", -5), ("-ERESTARTSYS", -512), ("0", 0), ("7", 7), ("-E4000", -4000), ("-5000", -5000)],
)
def test_errno_name(expected: str, value: int) -> None:
    """Errnos by name, also those that never leave the kernel; anything else as a number."""
    assert expected == words.errno_name(value)


@pytest.mark.parametrize(
    ("expected", "text", "taken", "atom"),
    [
        ("ret is true", "ret", True, None),
        ("b is false", "a &&\n\t b", False, "b"),
        ("case S_IFLNK is taken", "case S_IFLNK:", True, None),
        ("x == 3", "switch (x)", True, None),
        ("x == 3", "", True, None),
    ],
)
def test_truth(expected: str, text: str, taken: bool, atom: str | None) -> None:
    """The part that decided and which way; a switch in the words of its comparison."""
    condition = Condition(
        file=None, line=None, function="f", text=text, expr="x == 3", taken=taken, atom=atom
    )
    assert expected == words.truth(condition)


def condition(text: str, expr: str, *operands: tuple[str, str]) -> Condition:
    return Condition(
        file=None,
        line=None,
        function="f",
        text=text,
        expr=expr,
        taken=True,
        operands=tuple(Operand(expr=e, value=v, source="deduced") for e, v in operands),
    )


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        ("a->b != c", condition("x != c", "a->b != c")),
        (None, condition("x", "x != 0")),
        (None, condition("x", "x")),
        (None, condition("!len", "len == 0", ("len", "0"))),
        (None, condition("b", "a->b != 0", ("a->b", "not NULL"))),
        (None, condition("x", "*? == 3")),
        (None, condition("x", "*(stack-0x68) == 3")),
        (None, condition("", "x == 3")),
    ],
)
def test_held(expected: str | None, given: Condition) -> None:
    """What held is told where it adds to the condition and its values, and can be read."""
    assert expected == words.held(given)


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ("is_current_pgrp_orphaned() is true in __tty_check_change()", "eio"),
        ("2 places fit everything that was seen", "ambiguous"),
        ("the trace lost the events that would tell why", "lost"),
    ],
)
def test_reason(expected: str, name: str) -> None:
    """Half a line behind the call: the condition, the ambiguity, or what the summary adds."""
    data = json.loads((GOLDEN / f"{name}.json").read_text())
    data["summary"] = data["summary"].replace("connect()", "connect")
    assert expected == words.reason(Verdict.from_json(data))
