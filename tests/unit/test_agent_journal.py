"""The journal and the watchdog, on plain files in place of tracefs."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kwhy.agent import journal
from kwhy.agent.journal import Journal

SOURCE = Path(journal.__file__).parents[2]

#: An agent in little: changes a file, says so, and waits to be killed.
VICTIM = """
import sys
from kwhy.agent import journal, tracefs, watchdog
tracefs.RUN_DIR = sys.argv[1]
if sys.argv[3] == "watched":
    watchdog.start()
notes = journal.Journal(sys.argv[1])
notes.add("write", path=sys.argv[2], value="before")
open(sys.argv[2], "w").write("after!")
print("changed", flush=True)
sys.stdin.read()
"""


def victim(directory: Path, file: Path, watched: str) -> subprocess.Popen[bytes]:
    """Start one, and wait until it has made its change."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(VICTIM), str(directory), str(file), watched],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert process.stdout is not None
    assert b"changed\n" == process.stdout.readline()
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """kill -9, and reap."""
    process.kill()
    process.wait()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.stdout.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that stands for one of tracefs."""
    made = tmp_path / "file"
    made.write_text("before")
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A directory for journals."""
    made = tmp_path / "run"
    made.mkdir()
    return made


def test_entries_are_on_file_before_the_change(run: Path, file: Path) -> None:
    """``add`` returns when the journal is written; ``close`` undoes and leaves no file."""
    notes = Journal(str(run))
    notes.add("write", path=str(file), value="before")
    [stored] = run.glob("*.json")
    assert "before" == json.loads(stored.read_text())[0]["value"]
    file.write_text("")
    assert [] == notes.close()
    assert "before" == file.read_text()
    assert [] == list(run.iterdir())


def test_undoing_goes_backwards(run: Path, tmp_path: Path) -> None:
    """The last change is undone first."""
    target = tmp_path / "log"
    target.write_text("")
    notes = Journal(str(run))
    for word in ("first ", "second "):
        notes.add("write", path=str(target), value=word)
    notes.close()
    assert "second first " == target.read_text()


def test_undoing_goes_on_after_a_failure(run: Path, file: Path) -> None:
    """One entry that cannot be undone is reported and keeps none of the others."""
    file.write_text("")
    notes = Journal(str(run))
    notes.add("write", path=str(file), value="before")
    notes.add("write", path="/nowhere/at/all", value="1")
    notes.add("unheard-of", path="x")
    problems = notes.close()
    assert 2 == len(problems)
    assert "before" == file.read_text()


def test_the_next_agent_repairs(run: Path, file: Path) -> None:
    """Agent and watchdog both killed: the next start finds the journal and undoes it."""
    process = victim(run, file, "alone")
    assert [] == journal.repair(str(run))  # it lives: not ours to touch
    assert "after!" == file.read_text()
    end(process)
    file.write_text("")
    assert [f"restored after agent-{process.pid}"] == journal.repair(str(run))
    assert "before" == file.read_text()
    assert [] == journal.repair(str(run))
    assert [] == list(run.iterdir())


def test_the_watchdog_repairs(run: Path, file: Path) -> None:
    """kill -9 of the agent: its watchdog undoes the change by itself, and ends."""
    process = victim(run, file, "watched")
    file.write_text("")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert 1 == len(children)
    end(process)
    while Path(f"/proc/{children[0]}").exists():
        if "Z" == Path(f"/proc/{children[0]}/stat").read_text().rpartition(")")[2].split()[0]:
            break
    assert "before" == file.read_text()
    assert [] == list(run.iterdir())


def test_the_watchdog_ignores_polite_signals(run: Path, file: Path) -> None:
    """Signals to the terminal's process group do not reach it, and it does not obey them."""
    process = victim(run, file, "watched")
    [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(int(child), number)
    assert os.getsid(int(child)) == int(child)
    assert Path(f"/proc/{child}").exists()
    end(process)


def test_a_damaged_journal_is_dropped(run: Path) -> None:
    """A file that is no journal does not stop the next agent."""
    (run / "agent-999999999.json").write_text("{nonsense")
    (run / "agent-999999999.lock").touch()
    (run / "other.json").write_text("[]")
    assert [] == journal.repair(str(run))
    assert [] == journal.repair(str(run / "missing"))


@pytest.mark.parametrize(
    ("before", "now", "after"),
    [
        ("7 (expanded: 1408)", "7", "1408"),
        ("7 (expanded: 1408)", "7 (expanded: 1408)", "7 (expanded: 1408)"),
        ("7 (expanded: 1408)", "4096", "4096"),
        ("1408", "1408", "1408"),
    ],
)
def test_buffer_expansion(tmp_path: Path, before: str, now: str, after: str) -> None:
    """A buffer that would have grown at first use is left grown, anything else as it is."""
    file = tmp_path / "buffer_size_kb"
    file.write_text(now + "\n")
    journal.restore_expansion(str(file), before)
    assert after == file.read_text().strip().removeprefix(f"{now}\n") or after == now


def test_only_our_dynamic_events(tmp_path: Path) -> None:
    """The names in our group, whatever the kind of event, and nobody else's."""
    file = tmp_path / "dynamic_events"
    file.write_text("p:kwhy_1/a x\nr10:kwhy_1/b x\np:kwhy_12/c x\nf:mine/kwhy_1 x\ns:syn u64 x\n")
    assert ["a", "b"] == journal.own_probes(str(file), "kwhy_1")
    journal.remove_probes(str(file), "kwhy_1")
    assert file.read_text().endswith("-:kwhy_1/a\n-:kwhy_1/b\n")


def test_trees_are_removed_without_following_links(tmp_path: Path) -> None:
    """A link out of the tree loses only itself."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "file").touch()
    (tree / "away").symlink_to(outside)
    journal.remove_tree(str(tree))
    assert not tree.exists()
    assert (outside / "kept").exists()
