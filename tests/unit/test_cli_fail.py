"""The options of `kwhy fail` and `kwhy demo`, and the rounds of a live explanation."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.flow_build import ARCH

from kwhy.case import capture, live
from kwhy.cli import demo, fail
from kwhy.cli.main import main
from kwhy.cli.target import places
from kwhy.diagnose import rounds
from kwhy.errors import FeatureError, NothingToExplain, UsageError
from kwhy.lab.incidents import INCIDENTS


def parsed(*words: str) -> argparse.Namespace:
    """The arguments of `kwhy fail`."""
    parser = argparse.ArgumentParser()
    fail.add_arguments(parser)
    return parser.parse_args(list(words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "either a command after -- or a process"),
        (["-p", "1", "--", "true"], "either a command after -- or a process"),
        (["--compare", "--", "true"], "--compare is not built yet"),
        (["--repeat", "0", "--", "true"], "1 or more"),
        (["--errno", "EWHAT", "--", "true"], "'EWHAT'"),
        (["--core", "vmcore", "--", "true"], "a dump cannot run anything"),
        (["--case", "x.kwhy", "--", "true"], "a saved case runs no command"),
        (["--case", "x.kwhy", "-p", "1"], "a saved case runs no command"),
        (["--put", "/nowhere/to/be/found", "--", "true"], "no file"),
    ],
)
def test_misuse_is_told_before_anything_starts(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and one line that says what to do."""
    assert 2 == main(["fail", *words])
    error = capsys.readouterr().err
    assert said in error
    assert 1 == error.count("\n")


def test_a_case_that_is_no_case_is_a_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 4, no traceback."""
    file = tmp_path / "x.kwhy"
    file.write_bytes(b"not a case")
    assert 4 == main(["fail", "--case", str(file)])
    assert "Traceback" not in capsys.readouterr().err


class Rounds:
    """Recordings and answers in the order in which they are to happen; what was asked is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.extra: dict[str, Any] = {}
        self.refuse: Exception | None = None
        monkeypatch.setattr(capture, "record_round", self.record)
        monkeypatch.setattr(rounds, "answer", self.answer)
        monkeypatch.setattr(rounds, "open_session", self.session)
        monkeypatch.setattr(live, "LiveEvidence", lambda _link: self)
        self.facts = SimpleNamespace(question={})
        self.rounds: list[Any] = []

    def session(self, *_: object) -> Any:
        """Stands for what is kept from round to round."""
        return SimpleNamespace(syscall=None, errno=None, code=SimpleNamespace(arch=ARCH))

    @contextlib.contextmanager
    def record(self, _evidence: Any, _link: Any, **options: Any) -> Iterator[Any]:
        """Stands for a recording."""
        if self.asked and self.refuse:
            raise self.refuse
        self.asked.append(options)
        round_ = SimpleNamespace(extra=self.extra)
        self.rounds.append(round_)
        yield round_

    def answer(self, _session: Any) -> Any:
        """Stands for the analysis."""
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def answer(confidence: str, *probes: str) -> Any:
    """An answer that asks for probes."""
    call = SimpleNamespace(syscall="ioctl", errno="EIO")
    verdict = SimpleNamespace(confidence=confidence, call=call)
    return SimpleNamespace(verdict=verdict, probes=[{"name": p} for p in probes])


def explain(script: Rounds, *words: str) -> str:
    """The confidence of the verdict of a live explanation."""
    args = parsed(*words)
    verdict, evidence = fail.explain_live(
        SimpleNamespace(put=print, name="this host"), args, [] if args.pid else ["./x"]
    )
    assert evidence is script
    return str(verdict.confidence)


def test_one_round_is_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it says; the question is kept for `kwhy explain`."""
    script = Rounds(monkeypatch, answer("ambiguous", "k0"))
    assert "ambiguous" == explain(script, "--errno", "eio", "--syscall", "ioctl")
    assert 1 == len(script.asked)
    question = {"verb": "fail", "command": ["./x"], "pid": None, "syscall": "ioctl", "errno": "EIO"}
    assert question == script.facts.question


def test_later_rounds_arm_the_probes_that_the_last_answer_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And end with the answer that a probe has seen."""
    script = Rounds(monkeypatch, answer("ambiguous", "k0"), answer("observed"))
    assert "observed" == explain(script, "--repeat", "5")
    assert [[], [{"name": "k0"}]] == [list(asked["probes"]) for asked in script.asked]
    assert [(None, None), (16, -5)] == [asked["wanted"] for asked in script.asked]


def test_an_answer_that_asks_for_no_probe_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run could tell nothing more."""
    script = Rounds(monkeypatch, answer("deduced"))
    assert "deduced" == explain(script, "--repeat", "5")


def test_a_run_in_which_nothing_failed_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a run fails, or the rounds are used up."""
    nothing = NothingToExplain("nothing")
    script = Rounds(monkeypatch, nothing, answer("observed"))
    assert "observed" == explain(script, "--repeat", "2")
    with pytest.raises(NothingToExplain):
        explain(Rounds(monkeypatch, nothing, nothing), "--repeat", "2")


def test_an_answer_is_not_lost_when_a_later_round_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A target that refuses the probes leaves the first answer."""
    script = Rounds(monkeypatch, answer("ambiguous", "k0"))
    script.refuse = FeatureError("no probes", "kprobes")
    assert "ambiguous" == explain(script, "--repeat", "2")


def test_a_followed_process_is_recorded_until_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """There `enough` looks at the pages; a command simply runs to its end."""
    script = Rounds(monkeypatch, answer("observed"), answer("observed"))
    explain(script, "-p", "7")
    explain(script, "--timeout", "3")
    followed, ran = script.asked
    assert (7, fail.DEFAULT_TIMEOUT) == (followed["pid"], followed["timeout"])
    assert callable(followed["enough"])
    assert (None, 3.0) == (ran["enough"], ran["timeout"])


def test_a_command_that_cannot_start_is_misuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says why, and how to bring the program there; the empty round is not kept."""
    script = Rounds(monkeypatch)
    script.extra = {"exec_errno": 2}
    with pytest.raises(UsageError, match=r"cannot run './x' .*No such file.*--put"):
        explain(script)
    assert [] == script.rounds


def test_paths_and_words_of_debuginfo() -> None:
    """`auto` and `none` are words, anything else is a path."""
    assert ("none", Path("/usr/src")) == places(
        parsed("--debuginfo", "none", "--source", "/usr/src")
    )


def test_the_demo_shows_named_incidents_of_the_lab() -> None:
    """Each scene's program exists, and the kernel and colour can be chosen."""
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    args = parser.parse_args(["--lab", "5.10", "--color", "never", "-v"])
    assert ("5.10", "never", 1) == (args.lab, args.color, args.verbose)
    assert "6.12" == parser.parse_args([]).lab
    assert all(INCIDENTS[scene.program].named for scene in demo.SCENES)


def test_the_demo_explains_each_scene_as_kwhy_fail_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints the command line to repeat it by hand and runs the program it put there."""
    given: list[Any] = []

    def explain_live(_link: Any, args: argparse.Namespace, command: list[str]) -> Any:
        given.append((args, command))
        return "verdict", "evidence"

    from kwhy.cli import answer as ending

    monkeypatch.setattr(fail, "explain_live", explain_live)
    monkeypatch.setattr(ending, "give", lambda *_: 0)
    args = argparse.Namespace(lab="6.12", color="never", verbose=1)
    scene = demo.SCENES[0]
    assert 0 == demo._explain(object(), args, Path("/tmp/prog"), scene)
    [(made, command)] = given
    assert [f"./{scene.program}"] == command
    assert [(Path("/tmp/prog"), scene.program)] == [(p.local, p.remote) for p in made.put]
    assert (1, "never") == (made.verbose, made.color)
    assert f"-- ./{scene.program}" in capsys.readouterr().out
