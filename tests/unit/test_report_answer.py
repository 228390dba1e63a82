"""How a verb ends: what is printed, what is saved, and the exit status."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from kwhy.cli import answer
from kwhy.verdict import Verdict

GOLDEN = Path(__file__).parent.parent / "golden"


class Memory:
    """Evidence that remembers the order of what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def answer(self, key: str, compute: Any) -> Any:
        self.calls.append(key)
        return [["errno(3)", "kept words"]]

    def save(self, path: Path) -> None:
        self.calls.append(f"save {path.name}")


def sample(name: str) -> Verdict:
    return Verdict.from_json(json.loads((GOLDEN / f"{name}.json").read_text()))


@pytest.mark.parametrize(
    ("expected", "name"), [(0, "eio"), (0, "replaced"), (1, "ambiguous"), (1, "lost")]
)
def test_status(expected: int, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """0 when there is a verdict, 1 when it is ambiguous or unknown."""
    args = argparse.Namespace(json=False, color="never", save=None)
    assert expected == answer.give(sample(name), Memory(), args)
    assert capsys.readouterr().out.startswith("error: ")


def test_json_is_all_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """``--json``: one object and nothing else, the manual's words in it."""
    answer.give(sample("eio"), Memory(), argparse.Namespace(json=True))
    printed = json.loads(capsys.readouterr().out)
    assert [{"page": "errno(3)", "text": "kept words"}] == printed["manual"]


def test_manual_is_in_the_saved_case(tmp_path: Path) -> None:
    """The manual is asked before the case is written: the case explains to the same words."""
    evidence = Memory()
    args = argparse.Namespace(json=True, save=tmp_path / "it.kwhy")
    answer.give(sample("eio"), evidence, args)
    assert ["manual/ioctl/EIO/0x5403", "save it.kwhy"] == evidence.calls
