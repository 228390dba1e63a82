"""A real agent process on this host, for everything that needs no tracing."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kwhy.agent import protocol
from kwhy.errors import FeatureError, LinkError, UsageError
from kwhy.link import Link, Message, agent_zipapp, local
from kwhy.link.reach import BOOTSTRAP

PYTHONS = sorted(
    path
    for path in {sys.executable, *map(str, Path.home().glob(".pyenv/versions/3.*/bin/python3"))}
    if Path(path).exists()
)


@pytest.fixture
def link() -> Iterator[Link]:
    """A link to an agent of our own; it needs no root for what is asked here."""
    with local(require_root=False, probe=False) as made:
        yield made


def spawn(link: Link, *argv: str, **options: Any) -> list[Message]:
    """All messages of a command."""
    return list(link.stream("spawn", timeout=30, argv=list(argv), **options))


def text(messages: list[Message], kind: str) -> bytes:
    """What the command wrote to one stream."""
    return b"".join(message.data for message in messages if message.kind == kind)


def test_hello_names_the_kernel(link: Link) -> None:
    """The greeting has the kernel's identity and the agent's version."""
    assert os.uname().release == link.hello["kernel"]["release"]
    assert protocol.PROTOCOL == link.hello["protocol"]


def test_large_answers_flow(link: Link) -> None:
    """An answer far beyond the credit window arrives whole."""
    size = 5 * protocol.WINDOW + 12345
    assert bytes(size) == link.call("echo", size=size)[1]


def test_input_with_the_mark_in_it(link: Link) -> None:
    """Input may hold anything, also what would restart the conversation."""
    data = b"x" + protocol.SYNC_TO_AGENT * 3 + bytes(300000) + protocol.SYNC_TO_AGENT
    assert data == link.call("echo", input=data)[1]


def test_command_with_input_and_status(link: Link) -> None:
    """Output, error output and exit status come back; standard input is what was given."""
    script = "cat; echo oops >&2; exit 3"
    messages = spawn(link, "sh", "-c", script, input=b"hello")
    assert (b"hello", b"oops\n") == (text(messages, "out"), text(messages, "err"))
    assert 3 == messages[-1].header["status"]["code"]


def test_command_killed_by_a_signal(link: Link) -> None:
    """A signal is told from an exit status; the command's own SIGPIPE is not ignored."""
    messages = spawn(link, "sh", "-c", "kill -PIPE $$")
    status = messages[-1].header["status"]
    assert (None, signal.SIGPIPE) == (status["code"], status["signal"])


def test_command_that_cannot_be_executed(link: Link, tmp_path: Path) -> None:
    """The kernel's refusal to execute a file is a result, with its errno."""
    file = tmp_path / "text"
    file.write_text("not a program")
    file.chmod(0o644)
    status = spawn(link, str(file))[-1].header["status"]
    assert (126, 13) == (status["code"], status["exec_errno"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["no-such-command-at-all"], "no command no-such-command-at-all on the target"),
        (["./missing"], "no file ./missing on the target; --put"),
        ([], "list of strings"),
    ],
)
def test_command_not_found(link: Link, argv: list[str], words: str) -> None:
    """A command that does not exist is the user's mistake, found before anything runs."""
    with pytest.raises(UsageError, match=words):
        spawn(link, *argv)


def test_environment_directory_and_group(link: Link, tmp_path: Path) -> None:
    """cwd and env apply; the command leads a process group of its own, in the agent's session."""
    script = 'pwd; echo "$WORD"; test -z "$PATH_X"; ps -o pid=,pgid= -p $$ 2>/dev/null; ulimit -c'
    messages = spawn(link, "sh", "-c", script, cwd=str(tmp_path), env={"WORD": "w x"})
    lines = text(messages, "out").decode().splitlines()
    assert [str(tmp_path), "w x"] == lines[:2]
    fields = spawn(link, "cat", "/proc/self/stat")
    pid, group = (text(fields, "out").split()[i] for i in (0, 4))
    assert pid == group


def test_open_descriptors(link: Link) -> None:
    """A command gets 0, 1 and 2, and nothing of the agent's."""
    out = text(spawn(link, "sh", "-c", "ls /proc/$$/fd"), "out").split()
    assert {b"0", b"1", b"2"} == {name for name in out if int(name) < 9}


def test_timeout_kills_the_group(link: Link) -> None:
    """A command that runs too long is killed with its children, and the result says so."""
    script = "sleep 1000 & echo $!; wait"
    messages = list(link.stream("spawn", timeout=30, argv=["sh", "-c", script], seconds=0.2))
    assert messages[-1].header["timed_out"]
    child = int(text(messages, "out"))
    gone = threading.Event()
    while _alive(child):
        gone.wait(0.01)


def _alive(pid: int) -> bool:
    try:
        return "Z" != Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_put_keeps_content_and_mode(link: Link, tmp_path: Path) -> None:
    """A file larger than one piece arrives whole, executable, in the working directory."""
    source = tmp_path / "program"
    source.write_bytes(b"#!/bin/sh\necho ran\n" + b"#" * 700000)
    source.chmod(0o750)
    remote = Path(link.put(source))
    assert source.read_bytes() == remote.read_bytes()
    assert 0o750 == stat.S_IMODE(remote.stat().st_mode)
    assert link.call("workdir")[0]["path"] == str(remote.parent)
    assert b"ran\n" == text(spawn(link, "./program"), "out")
    assert str(tmp_path / "sub" / "program") == link.put(source, f"{tmp_path}/sub/")


def test_put_of_nothing(link: Link, tmp_path: Path) -> None:
    """A missing local file is a usage error; an empty one is copied."""
    with pytest.raises(UsageError, match="cannot read"):
        link.put(tmp_path / "missing")
    empty = tmp_path / "empty"
    empty.touch()
    assert b"" == Path(link.put(empty)).read_bytes()


def test_the_private_directory_goes_with_the_agent() -> None:
    """What was put into the agent's own directory does not stay on the target."""
    with local(require_root=False, probe=False) as link:
        path = Path(link.call("workdir")[0]["path"])
        (path / "sub").mkdir()
        (path / "sub" / "file").touch()
        (path / "link").symlink_to("/etc/passwd")
        assert path.is_dir()
    assert not path.exists()
    assert Path("/etc/passwd").exists()


def test_blobs(link: Link) -> None:
    """Named facts come by name; what does not exist is None; names are never paths."""
    names = link.blob("kallsyms")
    assert names is not None
    assert b" T " in names or b" t " in names
    assert None is link.blob("btf/no_such_module")
    assert None is link.blob("shadow")
    with pytest.raises(UsageError, match="not a name"):
        link.blob("btf/../../etc/shadow")
    with pytest.raises(UsageError, match="not a name"):
        link.blob("format/../x")


def test_facts_of_a_process(link: Link) -> None:
    """Facts of this very process."""
    facts, _ = link.call("facts", pid=os.getpid())
    assert str(os.getpid()) == facts["status"]["Pid"]
    assert os.getpid() in facts["threads"]
    assert str(Path.cwd()) == facts["cwd"]
    with pytest.raises(FeatureError, match="no process"):
        link.call("facts", pid=2**22 + 1)


def test_kill_of_the_agent_is_lost_contact(link: Link) -> None:
    """An agent killed in the middle of a call gives LinkError at once."""
    with link.stream("echo", timeout=60, delay=60) as stream:
        next(stream)
        os.kill(link.hello["pid"], signal.SIGKILL)
        with pytest.raises(LinkError, match="lost contact with this host"):
            next(stream)


def test_a_stopped_agent_times_out(link: Link) -> None:
    """A target that hangs gives LinkError after the call's timeout."""
    os.kill(link.hello["pid"], signal.SIGSTOP)
    try:
        with pytest.raises(LinkError, match=r"within 0\.2 s"):
            link.call("facts", timeout=0.2)
    finally:
        os.kill(link.hello["pid"], signal.SIGCONT)


def test_closing_ends_the_agent_and_its_command(link: Link) -> None:
    """Nothing runs on after the link is closed."""
    stream = link.stream("spawn", timeout=None, argv=["sleep", "1000"])
    child = next(stream).header["pid"]
    agent = link.hello["pid"]
    link.close()
    assert not _alive(child)
    assert not _alive(agent)


def test_root_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root there is one sentence and the name of what is missing."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FeatureError, match="takes root") as caught:
        local()
    assert "root" == caught.value.feature


@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_at_hand_runs_the_agent(python: str) -> None:
    """The zipapp works on the interpreters found here, the oldest being 3.6 where installed."""
    if subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 6))"]).returncode:
        pytest.skip("older than 3.6")
    with local(require_root=False, probe=False, python=python) as link:
        assert b"hi" == text(spawn(link, "printf", "hi"), "out")
        assert link.blob("kallsyms")


def test_the_zipapp_is_made_once_and_complete() -> None:
    """The same sources give the same file, with nothing but the agent inside."""
    path = agent_zipapp()
    made = path.stat().st_mtime_ns
    assert (path, made) == (agent_zipapp(), agent_zipapp().stat().st_mtime_ns)
    names = zipfile.ZipFile(path).namelist()
    assert ["__main__.py", "kwhy/__init__.py", "kwhy/__init__.pyc"] == names[:3]
    assert all(name.startswith("kwhy/agent/") for name in names[3:])


def test_the_bootstrap_of_ssh(tmp_path: Path) -> None:
    """What ssh runs takes the zipapp from standard input, becomes the agent, and leaves no file."""
    data = agent_zipapp().read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-c", BOOTSTRAP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"%d\n" % len(data) + data)
    process.stdin.flush()
    link = Link(process.stdout.fileno(), process.stdin.fileno(), probe=False)
    assert [] == list(tmp_path.iterdir())
    assert b"hi" == text(spawn(link, "printf", "hi"), "out")
    link.close()
    process.stdin.close()
    process.stdout.close()
    assert 0 == process.wait(20)


def test_usage_of_the_zipapp() -> None:
    """Started by hand it says what it is."""
    done = subprocess.run([sys.executable, str(agent_zipapp())], capture_output=True)
    assert (2, b"usage: agent.pyz") == (done.returncode, done.stderr[:16])


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh here")
def test_an_unreachable_host() -> None:
    """ssh that fails at once gives LinkError with its status."""
    from kwhy.link import ssh

    with pytest.raises(LinkError, match=r"nobody@invalid\.invalid.*ended with status 255"):
        ssh("nobody@invalid.invalid", timeout=20)
