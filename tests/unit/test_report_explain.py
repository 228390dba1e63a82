"""``kwhy explain`` with files that are no cases, and questions that make no sense."""

import zipfile
from pathlib import Path

import pytest

from kwhy.cli.main import main


@pytest.mark.parametrize("content", [b"", b"PK", b"not a case\n" * 100, b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_case(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 4 and one line that names the file; nothing on standard output."""
    path = tmp_path / "bad.kwhy"
    path.write_bytes(content)
    assert 4 == main(["explain", str(path), "--json"])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"kwhy explain: {path}: ")
    assert 1 == err.count("\n")


def test_a_zip_with_another_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A manifest of another number is refused with both numbers named."""
    path = tmp_path / "later.kwhy"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", '{"schema": "kwhy.case/99"}')
    assert 4 == main(["explain", str(path)])
    err = capsys.readouterr().err
    assert "kwhy.case/99" in err
    assert "kwhy.case/1" in err


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    """No such file is a bad input file, not a traceback."""
    assert 4 == main(["explain", "nowhere.kwhy"])
    assert "nowhere.kwhy" in capsys.readouterr().err


def test_an_unknown_errno(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is no errno is told before the case is opened."""
    assert 2 == main(["explain", "nowhere.kwhy", "--errno", "EFOO"])
    assert "EFOO" in capsys.readouterr().err


def test_completion_is_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    """The completion script names the verbs and the choices of their options."""
    assert 0 == main(["completion", "bash"])
    script = capsys.readouterr().out
    assert "explain)" in script
    assert "'auto always never'" in script
    assert script.rstrip().endswith("-F _kwhy kwhy")
