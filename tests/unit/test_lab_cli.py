"""The command line's frame: verbs found lazily, errors mapped to the contract's exit codes."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kwhy.cli import main as frame
from kwhy.cli import target
from kwhy.errors import FeatureError, InputError, KwhyError, LinkError, NothingToExplain, UsageError


def kwhy(*words: str) -> subprocess.CompletedProcess[str]:
    """``kwhy WORDS`` in a process of its own."""
    command = [sys.executable, "-m", "kwhy", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_help_names_the_verbs() -> None:
    """`kwhy --help` lists each verb and the exit codes."""
    shown = kwhy("--help")
    assert (0, "") == (shown.returncode, shown.stderr)
    assert all(f"  {verb} " in shown.stdout for verb in frame.available_verbs())
    assert "130 interrupted" in shown.stdout


def test_help_imports_nothing_heavy() -> None:
    """Help is instant because only the standard library is loaded for it."""
    script = (
        "import sys\nfrom kwhy.cli.main import main\nmain(['--help'])\n"
        "heavy = {'numpy', 'drgn', 'capstone', 'rich', 'zstandard', 'tree_sitter'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("words", [(), ("nosuch",), ("--nosuch",), ("lab",), ("lab", "nosuch")])
def test_usage(words: tuple[str, ...]) -> None:
    """A wrong command line ends with status 2 and says so on standard error alone."""
    shown = kwhy(*words)
    assert (2, "") == (shown.returncode, shown.stdout)
    assert shown.stderr and "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NothingToExplain("x"), 1),
        (UsageError("x"), 2),
        (FeatureError("x", "tracefs"), 3),
        (InputError("x"), 4),
        (LinkError("x"), 5),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each kind of error has its exit status; the message is one line."""

    class Verb:
        HELP = ""

        @staticmethod
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            """None."""

        @staticmethod
        def run(args: argparse.Namespace) -> int:
            raise error

    monkeypatch.setattr(frame, "import_module", lambda name: Verb)
    assert status == frame.main(["lab"])
    shown = capsys.readouterr().err
    assert 1 == shown.count("\n")
    assert not isinstance(error, KwhyError) or "kwhy lab: x\n" == shown


def test_terminated_like_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain kill unwinds as Ctrl-C does, so that everything is put in order."""

    class Verb:
        HELP = ""

        @staticmethod
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            """None."""

        @staticmethod
        def run(args: argparse.Namespace) -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
            return 0

    monkeypatch.setattr(frame, "import_module", lambda name: Verb)
    assert 130 == frame.main(["lab"])


def test_reader_goes_away() -> None:
    """`kwhy ... | head -0` ends without a traceback."""
    command = f"{sys.executable} -m kwhy completion bash | head -c 0"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "" == done.stderr


def test_command_behind_dashes() -> None:
    """What follows -- is the command, whatever it looks like."""
    parsed: dict[str, object] = {}

    class Verb:
        HELP = ""

        @staticmethod
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            target.add_put_argument(parser)
            parser.add_argument("where")
            parser.add_argument("command", nargs="*")

        @staticmethod
        def run(args: argparse.Namespace) -> int:
            parsed.update(vars(args))
            return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "import_module", lambda name: Verb)
        frame.main(["lab", "box", "--put", "a:b", "--", "sh", "-c", "x", "--", "--put"])
    assert ["sh", "-c", "x", "--", "--put"] == parsed["command"]
    assert [target.PutFile(Path("a"), "b")] == parsed["put"]


def test_put_file(tmp_path: Path) -> None:
    """LOCAL[:REMOTE]; an existing file with a colon in its name is taken as it is."""
    odd = tmp_path / "a:b"
    odd.touch()
    assert target.PutFile(Path("x"), None) == target.put_file("x")
    assert target.PutFile(Path("x"), "y") == target.put_file("x:y")
    assert target.PutFile(odd, None) == target.put_file(str(odd))
    with pytest.raises(UsageError, match="no file 'nosuch' here"):
        target.check_put_files([target.PutFile(Path("nosuch"), None)])


def test_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """--color decides; else NO_COLOR; else the terminal."""
    with Path(os.devnull).open("w") as stream:
        assert target.use_color("always", stream)
        assert not target.use_color("never", stream)
        monkeypatch.setattr(stream, "isatty", lambda: True)
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        assert target.use_color("auto", stream)
        monkeypatch.setenv("NO_COLOR", "1")
        assert not target.use_color("auto", stream)


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "soon"])
def test_bad_seconds(text: str) -> None:
    """A timeout is a positive, finite number."""
    with pytest.raises(argparse.ArgumentTypeError):
        target.positive_seconds(text)
