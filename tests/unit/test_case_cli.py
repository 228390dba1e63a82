"""``kwhy case``: what it prints, and its exit statuses."""

from pathlib import Path

import pytest

from kwhy.case.diskcache import Known
from kwhy.case.evidence import JSON, Facts
from kwhy.case.remembering import Remembering
from kwhy.cli.main import main


def test_show_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole case: its kernel, and that it is whole."""
    path = tmp_path / "x.kwhy"
    Remembering(Facts(release="6.12.1", target="lab 6.12")).save(path)
    assert 0 == main(["case", "show", str(path)])
    shown = capsys.readouterr().out
    assert "6.12.1" in shown
    assert "lab 6.12" in shown
    assert 0 == main(["case", "check", str(path)])
    assert "whole" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["show", "check"])
def test_what_is_no_case_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    """Exit status 4, nothing on stdout."""
    path = tmp_path / "x.kwhy"
    path.write_text("nothing")
    assert 4 == main(["case", action, str(path)])
    printed = capsys.readouterr()
    assert "" == printed.out
    assert 1 == printed.err.count("\n")


def test_verbs_that_are_not_built_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """redact and export are promised, not there."""
    assert 2 == main(["case", "export", str(tmp_path / "x.kwhy")])
    assert "not built yet" in capsys.readouterr().err


def test_slow_facts_are_found_once_per_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What DWARF said stays on the desk, by build-id."""
    monkeypatch.setenv("KWHY_CACHE", str(tmp_path))
    asked = []

    def compute() -> JSON:
        asked.append(1)
        return ["int"]

    for _ in range(2):
        assert ["int"] == Known("ab" * 20, "dwarf").get("f", compute)
    Known("cd" * 20, "dwarf").get("f", compute)
    assert 2 == len(asked)
