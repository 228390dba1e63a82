"""The lab with real kernels: guests come up, run things, can be shared, and end."""

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lab.conftest import Guests, Links
from tests.lab.desk import kwhy, kwhy_process, run_in

from kwhy import lab
from kwhy.errors import LinkError, UsageError
from kwhy.lab import build, guest, kernels, packages
from kwhy.lab.paths import state_dir

MODULE = """\
#include <linux/module.h>
static int answer = 42;
module_param(answer, int, 0444);
static int __init answer_init(void) { return 0; }
static void __exit answer_exit(void) { }
module_init(answer_init);
module_exit(answer_exit);
MODULE_LICENSE("GPL");
"""


def wait_gone(pid: int, seconds: float = 20) -> bool:
    """Whether a process ends within some seconds; it need not be a child of ours."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watched], [], [], seconds)[0])
    finally:
        os.close(watched)


def test_kernel_of_the_series(series: str, guests: Guests, links: Links) -> None:
    """Each series boots the kernel that was resolved for it, and its shell has the base tools."""
    code, out, err = run_in(links(series), "sh", "-c", "uname -r; ps -o comm= -p 1; ip -br link")
    release, init, *interfaces = out.splitlines()
    assert (0, "") == (code, err)
    assert kernels.resolve(series).release == release == guests(series).release
    assert "init" == init
    assert interfaces[0].split()[:2] in (["lo", "UNKNOWN"], ["lo", "UP"])


def test_file_systems(series: str, links: Links) -> None:
    """What tracing and the incidents need is mounted."""
    wanted = {
        "/proc": "proc",
        "/sys": "sysfs",
        "/dev": "devtmpfs",
        "/dev/pts": "devpts",
        "/dev/shm": "tmpfs",
        "/run": "tmpfs",
        "/tmp": "tmpfs",
        "/sys/kernel/tracing": "tracefs",
        "/sys/kernel/debug": "debugfs",
        "/sys/kernel/security": "securityfs",
        "/sys/fs/cgroup": "cgroup2",
    }
    _, out, _ = run_in(links(series), "cat", "/proc/mounts")
    mounted = {words[1]: words[2] for words in map(str.split, out.splitlines())}
    assert wanted == {place: mounted.get(place) for place in wanted}


def test_modules_load(series: str, tmp_path: Path, links: Links) -> None:
    """modprobe finds the kernel's own modules; one compiled here for it loads as well."""
    source = tmp_path / "answer.c"
    source.write_text(MODULE)
    module = build.build_module(kernels.resolve(series), source)
    link = links(series)
    link.put(module, "answer.ko")
    command = (
        "modprobe overlay && insmod answer.ko answer=7"
        " && cat /sys/module/answer/parameters/answer && rmmod answer"
    )
    assert (0, "7\n", "") == run_in(link, "sh", "-c", command)


def test_program(tmp_path: Path, links: Links) -> None:
    """A C program is compiled once and runs in a guest."""
    source = tmp_path / "three.c"
    source.write_text("int main(void) { return 3; }\n")
    program = build.build_program(source)
    link = links("6.12")
    link.put(program)
    assert 3 == run_in(link, "./three")[0]
    assert program == build.build_program(source)


def test_program_that_does_not_compile(tmp_path: Path) -> None:
    """The compiler's own words tell what is wrong."""
    source = tmp_path / "bad.c"
    source.write_text("int main(void) { return x; }\n")
    with pytest.raises(UsageError, match=r"bad\.c does not compile: .*undeclared"):
        build.build_program(source)


def test_run_in_disposable_guest() -> None:
    """`kwhy lab run 6.12 -- uname -r` boots, prints and leaves nothing behind."""
    ours = f".{os.getpid()}-*"  # others may have guests of their own
    before = list((state_dir() / "guests").glob(ours))
    outcome = kwhy("lab", "run", "6.12", "--", "uname", "-r")
    assert (0, kernels.resolve("6.12").release + "\n") == (outcome.status, outcome.out)
    assert before == list((state_dir() / "guests").glob(ours))


@pytest.mark.parametrize(
    ("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("exec true", 0)]
)
def test_exit_status(script: str, status: int, guests: Guests) -> None:
    """The status of the guest's command is ours, a signal as in a shell."""
    name = guests("6.12").name
    assert status == kwhy("lab", "run", name, "--", "sh", "-c", script).status


def test_output_and_errors_apart(guests: Guests) -> None:
    """Standard output and error arrive on their own, bytes unchanged."""
    words = ("sh", "-c", "echo out; echo err >&2")
    outcome = kwhy("lab", "run", guests("6.12").name, "--", *words)
    assert ("out\n", "err\n") == (outcome.out, outcome.err)


def test_command_not_found(guests: Guests) -> None:
    """One sentence, and the status of a usage error."""
    outcome = kwhy("lab", "run", guests("6.12").name, "--", "nosuchcommand")
    assert 2 == outcome.status
    assert "nosuchcommand" in outcome.err and 1 == outcome.err.count("\n")


def test_put(tmp_path: Path, guests: Guests) -> None:
    """--put copies a file with its mode, under its own or a given name, to where commands start."""
    program = tmp_path / "hello"
    program.write_text("#!/bin/sh\necho hello from $0\n")
    program.chmod(0o755)
    put = ("--put", str(program), "--put", f"{program}:other")
    outcome = kwhy("lab", "run", guests("6.12").name, *put, "--", "sh", "-c", "./hello; ./other")
    assert (0, "hello from ./hello\nhello from ./other\n") == (outcome.status, outcome.out)


def test_named_guest(tmp_path: Path) -> None:
    """A named guest stays between commands, keeps its files, is listed, and ends when told."""
    name = f"named-{os.getpid()}"
    note = tmp_path / "note"
    note.write_text("kept\n")
    assert 0 == kwhy("lab", "start", "6.12", "--name", name).status
    try:
        assert "runs already" in kwhy("lab", "start", "6.12", "--name", name).err
        listed = [line.split() for line in kwhy("lab", "list", "--offline").out.splitlines()]
        assert name in [words[0] for words in listed if words]
        assert 0 == kwhy("lab", "run", name, "--put", str(note), "--", "true").status
        # Another process finds it as well.
        with kwhy_process("lab", "run", name, "--", "cat", "note") as process:
            assert ("kept\n", "") == process.communicate(timeout=120)
        running = guest.find(name)
        assert running is not None
        assert 0 == kwhy("lab", "stop", name).status
        assert wait_gone(running.pid)
        assert not running.directory.exists()
    finally:
        left = guest.find(name)
        if left:
            left.stop()
    assert "no guest" in kwhy("lab", "stop", name).err


def test_several_agents_in_one_guest(links: Links) -> None:
    """Several desks share a guest, each with an agent of its own; one too many is told so."""
    several = [links("6.12") for _ in range(guest.AGENT_PORTS)]
    assert [0] * len(several) == [run_in(link, "true")[0] for link in several]
    with pytest.raises(LinkError, match="is busy"):
        links("6.12")
    several[0].close()
    assert 0 == run_in(links("6.12"), "true")[0]


def test_guest_dies_with_its_parent() -> None:
    """A disposable guest ends when the process that started it is killed by kill -9."""
    script = (
        "import signal\nfrom kwhy import lab\n"
        "guest = lab.start('6.12')\nprint(guest.pid, guest.directory, flush=True)\n"
        "signal.pause()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid, directory = parent.stdout.readline().split()
        assert not wait_gone(int(pid), 0)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert wait_gone(int(pid))
    guest.sweep()
    assert not Path(directory).exists()


def test_guest_that_dies() -> None:
    """A guest that ends under a link: LinkError, exit status 5 at the command line."""
    with lab.start("6.12") as running:
        link = lab.open_link(running)
        os.kill(running.pid, signal.SIGKILL)
        with pytest.raises(LinkError):
            for _ in range(3):
                link.call("facts")
        link.close()
        with pytest.raises(LinkError, match="QEMU ended"):
            running.open_agent()


def test_guest_that_does_not_boot() -> None:
    """A kernel that panics on its way up: the console's last lines tell why."""
    with pytest.raises(LinkError, match=r"(?s)ended while it booted.*panic"):
        lab.start("6.12", settings=lab.Settings(append="rdinit=/nosuch init=/nosuch"))


def test_wrong_qemu_argument() -> None:
    """QEMU's own complaint is passed on."""
    with pytest.raises(LinkError, match=r"QEMU ended at start: .*nosuch"):
        lab.start("6.12", settings=lab.Settings(qemu=("-nosuch",)))


def test_shell(guests: Guests) -> None:
    """The console socket is a root shell with a terminal, and a new one when that ended."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console:
        console.connect(str(guests("6.12").shell_socket))
        console.settimeout(5)
        for number in (1, 2):
            seen, tries = b"", 0
            while f"done-{number}-42".encode() not in seen:
                # The end of a shell's session throws away what was typed: type again, as one does.
                if not seen and tries < 12:
                    tries += 1
                    console.sendall(f"\n tty; id -u; echo done-{number}-$((6*7)); exit\n".encode())
                try:
                    seen += console.recv(4096)
                except TimeoutError:
                    assert tries < 12, seen
                    seen = b""
            assert b"/dev/hvc0" in seen


def test_monitor(guests: Guests) -> None:
    """QEMU's monitor answers, which the referee needs."""
    qmp = guests("6.12").qmp()
    try:
        assert "VM status: running" in qmp.monitor("info status")
        with pytest.raises(LinkError, match="refused"):
            qmp.command("nosuch")
    finally:
        qmp.close()


def test_packages_in_a_guest() -> None:
    """Programs of other Debian packages run in a guest, with the libraries they need."""
    tools = packages.guest_packages(["trace-cmd", "strace"])
    with (
        lab.start("6.12", settings=lab.Settings(files={"/": tools})) as running,
        lab.open_link(running) as link,
    ):
        assert 0 == run_in(link, "strace", "-o", "/dev/null", "true")[0]
        assert 0 == run_in(link, "trace-cmd", "list", "-t")[0]
