"""Bad input and bad weather: the contract's status, one clear sentence, nothing left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import pytest
from tests.lab.desk import Outcome, kwhy, kwhy_process, own_guest, program, run_in

from kwhy import lab
from kwhy.lab.build import build_program

if find_spec("kwhy.cli.fail") is None:
    pytest.skip("kwhy fail is not there", allow_module_level=True)

SERIES = "6.12"
SURE = "fifo_nxio"
"""An incident that one run explains for certain."""

# All that kwhy may change in tracefs, as text. Per-CPU pages and counters of what was recorded stay
# out: reading them would change them.
STATE = """
cd /sys/kernel/tracing || exit
for f in current_tracer tracing_on set_event set_event_pid set_ftrace_pid set_ftrace_filter \
    set_ftrace_notrace set_graph_function kprobe_events uprobe_events dynamic_events trace_clock \
    trace_options buffer_size_kb events/enable; do
    echo "== $f"; cat $f 2>&1
done
echo "== instances"; ls instances
echo "== processes"; for p in /proc/[0-9]*; do cat $p/comm 2>/dev/null; done | grep -c trace
"""

SILENT = """
/* Makes no system call that fails: no C library, no loader. */
void _start(void)
{
	__asm__ volatile("syscall" : : "a"(231), "D"(0) : "rcx", "r11", "memory");
	__builtin_unreachable();
}
"""

MOMENT = """
/* Says that it is there, fails harmlessly without end, or so often and then dies of SIGKILL. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long left = argc > 1 ? atol(argv[1]) : -1;

	(void)!write(2, "ready\\n", 6);
	for (; left; left--) {
		close(-1);
		if (argc <= 1)
			usleep(1000);
	}
	kill(getpid(), SIGKILL);
}
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[lab.Guest]:
    """A guest of our own: what is wrong here must not bother others."""
    with own_guest(SERIES, "weather") as running:
        yield running


def state(guest: lab.Guest) -> str:
    """The guest's tracing state."""
    with lab.open_link(guest) as link:
        return run_in(link, "sh", "-c", STATE)[1]


@pytest.fixture
def unchanged(guest: lab.Guest) -> Iterator[None]:
    """The tracing state after the test is the one before it."""
    before = state(guest)
    yield
    assert before == state(guest)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles a program of this file."""

    def compile_text(name: str, text: str, *flags: str) -> Path:
        source = tmp_path_factory.mktemp("c") / f"{name}.c"
        source.write_text(text)
        return build_program(source, list(flags))

    return compile_text


def is_one_sentence(outcome: Outcome) -> bool:
    """No traceback, nothing on standard output, and at the end of the errors one line from kwhy."""
    lines = re.findall(r"^kwhy(?: \w+)?: .", outcome.err, re.M)
    return "Traceback" not in outcome.err and not outcome.out and len(lines) == 1


def fail(guest: lab.Guest, *words: str) -> Outcome:
    """``kwhy fail --lab GUEST --json WORDS``."""
    return kwhy("fail", "--lab", guest.name, "--json", "--timeout", "120", *words)


def test_command_not_found(guest: lab.Guest, unchanged: None) -> None:
    """A wrong command is a usage error and named as such."""
    outcome = fail(guest, "--", "./no-such-program")
    assert outcome.status == 2
    assert is_one_sentence(outcome), outcome.err
    assert "no-such-program" in outcome.err


def test_put_file_not_found(guest: lab.Guest) -> None:
    """A file that is not here is noticed before anything is started."""
    outcome = fail(guest, "--put", "/no/such/file", "--", "true")
    assert outcome.status == 2
    assert is_one_sentence(outcome), outcome.err


def test_command_that_never_fails(
    guest: lab.Guest, unchanged: None, build: Callable[..., Path]
) -> None:
    """Nothing failed, so there is nothing to explain."""
    path = build("silent", SILENT, "-nostdlib", "-ffreestanding")
    outcome = fail(guest, "--put", str(path), "--", "./silent")
    assert outcome.status == 1
    assert is_one_sentence(outcome), outcome.err


def test_failure_that_is_not_there(guest: lab.Guest, unchanged: None) -> None:
    """Calls failed, but none as asked: the answer says so instead of explaining another one."""
    path = str(program(SURE))
    outcome = fail(guest, "--put", path, "--errno", "EDOM", "--", f"./{SURE}")
    assert outcome.status == 1
    assert is_one_sentence(outcome), outcome.err


def test_process_that_is_killed_in_the_middle(
    guest: lab.Guest, unchanged: None, build: Callable[..., Path]
) -> None:
    """A thousand failures, then SIGKILL: the last words are still explained."""
    path = build("moment", MOMENT)
    outcome = fail(guest, "--put", str(path), "--", "./moment", "1000")
    assert outcome.status == 0, outcome.err
    assert outcome.verdict["call"]["syscall"] == "close"
    assert outcome.verdict["call"]["errno"] == "EBADF"


def test_lost_events(
    guest: lab.Guest,
    unchanged: None,
    build: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a buffer of one page much is lost: that is said, and it makes no answer a wrong one."""
    from kwhy.case import capture

    small = partial(capture.record_round, buffer_kb=4)
    monkeypatch.setattr(capture, "record_round", small)
    path = build("moment", MOMENT)
    outcome = fail(guest, "--put", str(path), "--", "./moment", "200000")
    assert "Traceback" not in outcome.err
    if not outcome.out:
        assert outcome.status == 1
        assert "lost" in outcome.err
        return
    verdict = outcome.verdict
    assert verdict["evidence"]["lost"] > 0
    assert (verdict["call"]["syscall"], verdict["call"]["errno"]) == ("close", "EBADF")


@pytest.fixture(scope="module")
def case(guest: lab.Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good case with its verdict beside it."""
    path = tmp_path_factory.mktemp("case") / "good.kwhy"
    words = ("--put", str(program(SURE)), "--save", str(path), "--", f"./{SURE}")
    outcome = fail(guest, *words)
    assert outcome.status == 0, outcome.err
    path.with_suffix(".json").write_text(outcome.out)
    return path


def test_a_saved_case_gives_the_same_verdict(case: Path) -> None:
    """The same JSON, letter for letter, without the guest."""
    outcome = kwhy("explain", str(case), "--json")
    assert outcome.status == 0, outcome.err
    assert case.with_suffix(".json").read_text() == outcome.out


def test_a_case_is_private(case: Path) -> None:
    """It can hold kernel memory."""
    assert case.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("part", [0, 1, 100, 0.1, 0.5, 0.9, -1, -30])
def test_truncated_case(case: Path, tmp_path: Path, part: float) -> None:
    """Wherever the file ends too early: a bad input file."""
    whole = case.read_bytes()
    size = int(len(whole) * part) if isinstance(part, float) else part
    bad = tmp_path / "bad.kwhy"
    bad.write_bytes(whole[:size])
    outcome = kwhy("explain", str(bad))
    assert outcome.status == 4
    assert is_one_sentence(outcome), outcome.err


@pytest.mark.parametrize("member", ["../escape", "/etc/escape", "manifest.json"])
def test_hostile_members(case: Path, tmp_path: Path, member: str) -> None:
    """A member outside, or a second manifest, is refused; nothing is written anywhere."""
    bad = tmp_path / "inner" / "bad.kwhy"
    bad.parent.mkdir()
    shutil.copy(case, bad)
    expected = pytest.warns(UserWarning) if member == "manifest.json" else nullcontext()
    with expected, zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(member, "{}")
    outcome = kwhy("explain", str(bad))
    assert outcome.status == 4
    assert is_one_sentence(outcome), outcome.err
    assert [bad] == [path for path in tmp_path.rglob("*") if path.is_file()]


def test_zip_bomb(case: Path, tmp_path: Path) -> None:
    """A member that unpacks to gigabytes is refused before it is unpacked."""
    bad = tmp_path / "bomb.kwhy"
    with (
        zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("manifest.json", "w", force_zip64=True) as out,
    ):
        for _ in range(64):
            out.write(bytes(64 << 20))
    outcome = kwhy("explain", str(bad))
    assert outcome.status == 4
    assert is_one_sentence(outcome), outcome.err


def test_flipped_bytes(case: Path, tmp_path: Path) -> None:
    """One damaged byte anywhere is noticed, or does no harm: never a traceback."""
    whole = case.read_bytes()
    step = max(1, len(whole) // 40)
    for position in range(7, len(whole), step):
        bad = tmp_path / "bad.kwhy"
        bad.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        outcome = kwhy("explain", str(bad), "--json")
        assert outcome.status in (0, 1, 4), (position, outcome.err)
        assert "Traceback" not in outcome.err
        if outcome.status == 0:
            assert case.with_suffix(".json").read_text() == outcome.out, position


def wait_for(word: str, stream: IO[str]) -> str:
    """Read lines up to the one with that word; what was read."""
    seen = ""
    for line in stream:
        seen += line
        if word in line:
            return seen
    raise AssertionError(f"it ended without {word!r}: {seen}")


def test_a_guest_that_dies(build: Callable[..., Path]) -> None:
    """``kill -9`` of QEMU while the command runs: contact is lost, and that is said at once."""
    path = str(build("moment", MOMENT))
    with own_guest(SERIES, "dying") as guest:
        words = ("fail", "--lab", guest.name, "--json", "--put", path, "--", "./moment")
        with kwhy_process(*words) as process:
            assert process.stderr is not None
            wait_for("ready", process.stderr)
            os.kill(guest.pid, signal.SIGKILL)
            out, err = process.communicate(timeout=120)
    assert process.returncode == 5
    assert is_one_sentence(Outcome(process.returncode, out, err)), err


@pytest.mark.parametrize("moment", ["recording", "ready", "explaining"])
def test_interrupted(
    guest: lab.Guest, unchanged: None, build: Callable[..., Path], moment: str
) -> None:
    """Ctrl-C while it prepares, while the command runs, and while it thinks: 130, and all is put
    back."""
    path = str(build("moment", MOMENT))
    count = ("3000",) if moment == "explaining" else ()
    words = ("-v", "--lab", guest.name, "--json", "--put", path, "--", "./moment", *count)
    with kwhy_process("fail", *words) as process:
        assert process.stderr is not None
        wait_for(moment, process.stderr)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not out
    with lab.open_link(guest) as link:  # the command is gone, too
        assert run_in(link, "pidof", "moment")[0] == 1


def test_no_root() -> None:
    """Tracing this host takes root: said at once, and nothing was touched."""
    if os.geteuid() == 0:
        setpriv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    else:
        setpriv = []
    probe = [*setpriv, sys.executable, "-c", "import kwhy.cli.main"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("nobody cannot read this checkout")
    found = subprocess.run(
        [*setpriv, sys.executable, "-m", "kwhy", "fail", "--", "true"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HOME": "/nonexistent"},
    )
    assert found.returncode == 3
    assert is_one_sentence(Outcome(found.returncode, found.stdout, found.stderr)), found.stderr
    assert "root" in found.stderr


def test_no_tracefs(guest: lab.Guest, unchanged: None) -> None:
    """Where nobody mounted tracefs it is mounted while the agent lives only, or it is missed."""

    def mounts() -> str:
        # The agent that looks may itself have mounted it, as long as it lives.
        with lab.open_link(guest) as link:
            return run_in(link, "grep", " tracefs ", "/proc/mounts")[1]

    with lab.open_link(guest) as link:
        unmount = "umount /sys/kernel/debug/tracing 2>/dev/null; umount /sys/kernel/tracing"
        assert run_in(link, "sh", "-c", unmount)[0] == 0
    try:
        before = mounts()
        outcome = fail(guest, "--put", str(program(SURE)), "--", f"./{SURE}")
        assert outcome.status in (0, 3), outcome.err
        assert outcome.status == 0 or ("tracefs" in outcome.err and is_one_sentence(outcome))
        assert before == mounts()
    finally:
        with lab.open_link(guest) as link:
            run_in(link, "mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing")


BUSY = "cd /sys/kernel/tracing && echo {} > current_tracer && echo 1 > events/sched/enable"


@pytest.mark.parametrize(
    "tracer", [pytest.param("function", marks=pytest.mark.slow), "function_graph"]
)
def test_someone_else_is_tracing(guest: lab.Guest, tracer: str) -> None:
    """Another's tracer keeps running, untouched: we use an instance of our own, or refuse."""
    with lab.open_link(guest) as link:
        assert run_in(link, "sh", "-c", BUSY.format(tracer))[0] == 0
    try:
        before = state(guest)
        outcome = fail(guest, "--put", str(program(SURE)), "--", f"./{SURE}")
        assert outcome.status in (0, 3), outcome.err
        assert outcome.status == 0 or is_one_sentence(outcome), outcome.err
        assert before == state(guest)
    finally:
        with lab.open_link(guest) as link:
            undo = BUSY.format("nop").replace("echo 1 > ", "echo 0 > ")
            assert run_in(link, "sh", "-c", undo)[0] == 0


def test_lockdown() -> None:
    """A kernel that is locked down against its root refuses; the sentence names lockdown."""
    lock = (
        "mount -t securityfs none /sys/kernel/security 2>/dev/null;"
        " echo confidentiality > /sys/kernel/security/lockdown"
    )
    with own_guest(SERIES, "locked") as guest:
        with lab.open_link(guest) as link:
            if run_in(link, "sh", "-c", lock)[0]:
                pytest.skip("this kernel has no lockdown")
        outcome = fail(guest, "--put", str(program(SURE)), "--", f"./{SURE}")
        assert outcome.status == 3
        assert is_one_sentence(outcome), outcome.err
        assert "lock" in outcome.err
