"""A command is kept at its exit until it is let go; this host's own processes are held."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kwhy.agent.hold import Holder, hold


@pytest.fixture
def run() -> Callable[[str], "subprocess.Popen[bytes]"]:
    """``run(code)``: a Python process that waits for its input to end, then runs the code."""

    def start(code: str) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-c", "import sys; sys.stdin.read()\n" + code]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    return start


def held(process: "subprocess.Popen[bytes]", seconds: float = 30) -> Holder:
    """The process, traced, and its code begun."""
    holder = hold(process.pid, seconds)
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


def state(pid: int) -> str:
    """The letter of a process's state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_at_its_exit_a_process_still_has_its_memory(
    run: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    """And its output has come, and how it will end is known."""
    process = run("print('hello', flush=True); sys.exit(3)")
    holder = held(process)
    until(holder.held)
    assert process.stdout is not None
    assert b"hello\n" == process.stdout.readline()
    assert 3 == os.WEXITSTATUS(holder.status or 0)
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
    until(holder.held)
    assert signal.SIGTERM == os.WTERMSIG(holder.status or 0)
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
    assert not holder.held()
    assert 4 == process.wait(20)


def test_a_first_thread_that_leaves_the_others_is_no_end(
    run: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    """The process goes on, and ends when its last thread does."""
    process = run(
        "import ctypes, threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(1.5), __import__('os')._exit(5))).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)"
    )
    holder = held(process)
    assert 5 == process.wait(20)
    assert not holder.held()
    holder.release()
