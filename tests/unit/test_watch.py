"""What changed between two pictures, and the words of the report."""

import pytest

from kwhy.cli.watch import _steps
from kwhy.emulate.picture import Change, differences
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
