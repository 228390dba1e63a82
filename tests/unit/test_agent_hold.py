"""A command is kept at its exit until it is let go; this host's own processes are held."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kwhy.agent.exits import Wanted
from kwhy.agent.hold import Holder, Leaving, hold

OTHERS = {"seconds": 30}


@pytest.fixture
def run() -> Callable[[str], "subprocess.Popen[bytes]"]:
    """``run(code)``: a Python process that waits for its input to end, then runs the code."""

    def start(code: str) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-c", "import sys; sys.stdin.read()\n" + code]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    return start


def held(
    process: "subprocess.Popen[bytes]", seconds: float = 30, others: dict[str, Any] | None = None
) -> Holder:
    """The process, traced, and its code begun."""
    holder = hold(process.pid, seconds, others)
    if holder is None:
        process.kill()
        pytest.skip("this host lets nobody trace")
    assert process.stdin is not None
    process.stdin.close()
    return holder


def until(true: Callable[[], bool]) -> None:
    """Wait for something that has to come."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def standing(holder: Holder) -> bool:
    """Whether its first process stands at its exit now."""
    holder.look()
    return holder.held()


def status(holder: Holder) -> int:
    """The wait status of the first process that is kept."""
    assert holder.first is not None
    return holder.first.status


def next_one(holder: Holder) -> Leaving:
    """The next process that is kept at its exit."""
    found: list[Leaving] = []

    def looked() -> bool:
        found.extend(holder.look())
        return bool(found)

    until(looked)
    assert 1 == len(found)
    return found[0]


def state(pid: int) -> str:
    """The letter of a process's state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_at_its_exit_a_process_still_has_its_memory(
    run: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    """And its output has come, and how it will end is known."""
    process = run("print('hello', flush=True); sys.exit(3)")
    holder = held(process)
    until(lambda: standing(holder))
    assert process.stdout is not None
    assert b"hello\n" == process.stdout.readline()
    assert 3 == os.WEXITSTATUS(status(holder))
    assert "t" == state(process.pid)
    assert "[stack]" in Path(f"/proc/{process.pid}/maps").read_text()
    holder.release()
    assert 3 == process.wait(20)


def test_signals_stop_it_and_end_it_as_ever(
    run: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    """A stopped process stays stopped until it is continued; a deadly signal is an end, too."""
    process = run("import time; time.sleep(60)")
    holder = held(process)
    process.send_signal(signal.SIGSTOP)
    until(lambda: state(process.pid) in "tT")
    process.send_signal(signal.SIGCONT)
    until(lambda: state(process.pid) == "S")
    process.send_signal(signal.SIGTERM)
    until(lambda: standing(holder))
    assert signal.SIGTERM == os.WTERMSIG(status(holder))
    holder.release()
    assert -signal.SIGTERM == process.wait(20)


def test_a_hold_has_an_end(run: Callable[[str], "subprocess.Popen[bytes]"]) -> None:
    """Also when nobody lets it go."""
    process = run("")
    holder = held(process, 0.2)
    assert 0 == process.wait(20)
    holder.release()


def test_a_process_that_was_let_go_before_its_end_runs_on(
    run: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    """The tracer may be gone at any time."""
    process = run("import time; time.sleep(0.5); sys.exit(4)")
    holder = held(process)
    holder.release()
    assert not standing(holder)
    assert 4 == process.wait(20)


LEADER_LEFT = (
    "import ctypes, threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.5), __import__('os')._exit(5))).start()\n"
    "ctypes.CDLL(None).syscall(60, 0)"
)


def test_a_first_thread_that_leaves_the_others_is_no_end(
    run: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    """The process goes on, and is kept when its last thread ends."""
    process = run(LEADER_LEFT)
    holder = held(process, others=OTHERS)
    leaving = next_one(holder)
    assert 5 == os.WEXITSTATUS(leaving.status)
    assert [process.pid] != leaving.tids
    assert process.poll() is None
    holder.release()
    assert 5 == process.wait(20)


def test_a_child_that_ends_badly_is_kept_and_its_parent_waits(
    run: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    """One that ends well is not; the wait status is the child's own."""
    code = "import subprocess as s; s.call('true'); sys.exit(s.call(['sh', '-c', 'exit 3']) + 1)"
    process = run(code)
    holder = held(process, others=OTHERS)
    leaving = next_one(holder)
    assert process.pid != leaving.pid
    assert 3 == os.WEXITSTATUS(leaving.status)
    assert "t" == state(leaving.pid)
    assert not holder.held()
    holder.let_go(leaving.tids[0])
    until(lambda: standing(holder))
    assert 4 == os.WEXITSTATUS(status(holder))
    holder.release()
    assert 4 == process.wait(20)


def test_a_child_is_not_kept_for_long(run: Callable[[str], "subprocess.Popen[bytes]"]) -> None:
    """Also when nobody looks; the command ends as ever."""
    process = run("import subprocess; sys.exit(subprocess.call('false') + 1)")
    holder = held(process, 0.2, {"seconds": 0.2})
    assert 2 == process.wait(20)
    holder.release()


def test_all_threads_of_an_ending_process_are_kept(
    run: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    """Whichever of them ended it; one that just ends is let go at once."""
    process = run(
        "import os, threading, time\n"
        "for n in range(20): (t := threading.Thread(target=int)).start() or t.join()\n"
        "for n in range(3): threading.Thread(target=time.sleep, args=(9,)).start()\n"
        "os._exit(7)"
    )
    holder = held(process, others=OTHERS)
    leaving = next_one(holder)
    assert 7 == os.WEXITSTATUS(leaving.status)
    assert process.pid in leaving.tids
    assert 4 == len(leaving.tids)
    assert {"t"} == {state(tid) for tid in leaving.tids}
    holder.release()
    assert 7 == process.wait(20)


def test_execve_by_another_thread_goes_on(
    run: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    """It takes the number of the first one, which must make room."""
    process = run(
        "import os, threading, time\n"
        "threading.Thread(target=os.execv, args=('/bin/sh', ['sh', '-c', 'exit 6'])).start()\n"
        "time.sleep(9)"
    )
    holder = held(process, others=OTHERS)
    until(lambda: standing(holder))
    assert 6 == os.WEXITSTATUS(status(holder))
    holder.release()
    assert 6 == process.wait(20)


def test_a_vfork_and_a_stopped_child_go_on(
    run: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    """The parent is told of stops and goings-on of its child as ever."""
    process = run(
        "import os, signal\n"
        "assert os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)[1] == 0\n"
        "child = os.fork() or os.execv('/bin/sleep', ['sleep', '60'])\n"
        "os.kill(child, signal.SIGSTOP)\n"
        "assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])\n"
        "os.kill(child, signal.SIGCONT)\n"
        "assert os.WIFCONTINUED(os.waitpid(child, os.WCONTINUED)[1])\n"
        "os.kill(child, signal.SIGKILL)\n"
        "assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9\n"
        "sys.exit(8)"
    )
    holder = held(process, others={"seconds": 1})
    until(lambda: standing(holder))
    holder.release()
    assert 8 == process.wait(20)


def test_when_the_one_who_follows_is_killed_all_go_on(
    run: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    """Those at their exits, too."""
    process = run("import subprocess; sys.exit(subprocess.call(['sh', '-c', 'sleep 0.2; exit 3']))")
    holder = held(process, others=OTHERS)
    assert 3 == os.WEXITSTATUS(next_one(holder).status)
    os.kill(holder._process, signal.SIGKILL)
    assert 3 == process.wait(20)
    holder.release()


def test_a_command_that_traces_is_not_hindered(
    run: Callable[[str], "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    """Children of a program that mentions ptrace are its own; a leak checker's process, too."""
    tracer = tmp_path / "tracer"
    tracer.write_bytes(Path(os.path.realpath(sys.executable)).read_bytes() + b"ptrace")
    tracer.chmod(0o755)
    code = (
        "import ctypes, os; pid = os.fork(); p = ctypes.CDLL(None).ptrace\n"
        "if pid == 0: os._exit(p(0, 0, 0, 0) != 0)\n"
        "sys.exit(os.waitpid(pid, 0)[1] >> 8)"
    )
    process = run(f"import os; os.execv({str(tracer)!r}, ['x', '-c', {'import sys; ' + code!r}])")
    holder = held(process, others=OTHERS)
    until(lambda: standing(holder))
    assert 0 == os.WEXITSTATUS(status(holder))
    holder.release()
    assert 0 == process.wait(20)


@pytest.mark.parametrize(
    ("params", "status", "failed", "worth"),
    [
        (None, 256, [(1, -2)], False),
        (OTHERS, 0, [(1, -2)], False),
        (OTHERS, 256, [], False),
        (OTHERS, 256, [(1, -2)], True),
        (OTHERS, 9, None, True),
        ({**OTHERS, "nr": 1}, 0, [(1, -2)], True),
        ({**OTHERS, "nr": 1, "ret": -2}, 0, [(2, -2), (1, -3)], False),
        ({**OTHERS, "ret": -2}, 0, [(2, -2)], True),
        ({**OTHERS, "nr": 1}, 256, None, True),
    ],
)
def test_which_processes_are_worth_a_look(
    params: dict[str, Any] | None,
    status: int,
    failed: list[tuple[int, int]] | None,
    worth: bool,
) -> None:
    """Those in which the wanted call failed, or that fail after any."""
    assert worth == Wanted(params).worth(status, failed)
