"""The ways to an agent: this host, a lab guest's socket, ssh. Each gives a Link."""

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

from kwhy.errors import FeatureError, LinkError
from kwhy.link.link import Link
from kwhy.link.zipapp import agent_zipapp

#: Files and commands of one guest share this over all connections.
GUEST_WORKDIR = "/root"

#: Runs on the remote host: takes "SIZE\n" and the zipapp from standard input, becomes the agent.
BOOTSTRAP = """\
import os,sys,tempfile
b=b""
while not b.endswith(b"\\n"): b+=os.read(0,1)
n=int(b); f,p=tempfile.mkstemp(".pyz","kwhy-")
while n:
    d=os.read(0,min(n,65536))
    if not d: sys.exit(1)
    os.write(f,d); n-=len(d)
os.close(f)
os.execv(sys.executable,[sys.executable,p,"--stdio","--unlink"])
"""


def local(*, require_root: bool = True, probe: bool = True, python: str = sys.executable) -> Link:
    """An agent on this host. Raises FeatureError without root (unless told not to care)."""
    if require_root and os.geteuid() != 0:
        raise FeatureError("tracing this host takes root: run kwhy with sudo", "root")
    return _over_process(
        [python, str(agent_zipapp()), "--stdio"], "this host", hello_timeout=60, probe=probe
    )


def guest(path: Path | str, *, name: str = "the guest", timeout: float = 120.0) -> Link:
    """The agent of a lab guest, by the unix socket of its virtio port.

    Waits up to ``timeout`` s for a guest that is still booting.
    """
    end = time.monotonic() + timeout
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    while True:
        try:
            connection.connect(str(path))
            break
        except OSError as error:
            if time.monotonic() > end or not isinstance(
                error, FileNotFoundError | ConnectionRefusedError | BlockingIOError
            ):
                connection.close()
                raise LinkError(f"cannot reach {name}: {path}: {error.strerror}") from None
        time.sleep(0.05)
    return over_socket(connection, name=name, timeout=max(1.0, end - time.monotonic()))


def over_socket(
    connection: socket.socket,
    *,
    name: str = "the guest",
    workdir: str | None = GUEST_WORKDIR,
    timeout: float = 60.0,
    probe: bool = True,
) -> Link:
    """An agent at the other end of a connected socket (``Guest.open_agent()`` of the lab).

    The link owns the socket from here on. ``workdir``: where files and commands go, None: a
    directory of the agent's own.
    """
    link = Link(
        connection.fileno(),
        connection.fileno(),
        name=name,
        hello_timeout=timeout,
        probe=probe,
        on_close=connection.close,
    )
    if workdir:
        link.call("workdir", path=workdir)
    return link


def ssh(host: str, *, python: str = "python3", timeout: float = 60.0, probe: bool = True) -> Link:
    """An agent on ``[USER@]HOST``, sent over ssh; nothing is installed there.

    A user other than root needs password-less sudo.
    """
    remote = f"{python} -c {shlex.quote(BOOTSTRAP)}"
    command = f'if [ "$(id -u)" = 0 ]; then exec {remote}; else exec sudo -n {remote}; fi'
    data = agent_zipapp().read_bytes()
    return _over_process(
        ["ssh", "-T", "-o", "ServerAliveInterval=10", "--", host, command],
        host,
        hello_timeout=timeout,
        probe=probe,
        before=b"%d\n" % len(data) + data,
    )


def _over_process(
    argv: list[str], name: str, *, hello_timeout: float, probe: bool = True, before: bytes = b""
) -> Link:
    """A link over a child process's standard input and output."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us: we tell the agent, which then cleans up
    )
    assert process.stdin is not None and process.stdout is not None
    to_agent, from_agent = process.stdin, process.stdout

    def alive() -> str | None:
        status = process.poll()
        return None if status is None else f"{Path(argv[0]).name} ended with status {status}"

    def finish() -> None:
        for file in (to_agent, from_agent):
            with contextlib.suppress(OSError):
                file.close()
        try:
            process.wait(60)  # it puts tracing back before it ends
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    try:
        if before:
            to_agent.write(before)
            to_agent.flush()
        return Link(
            from_agent.fileno(),
            to_agent.fileno(),
            name=name,
            hello_timeout=hello_timeout,
            probe=probe,
            alive=alive,
            on_close=finish,
        )
    except OSError as error:
        finish()
        raise LinkError(f"cannot reach {name}: {alive() or error.strerror}") from None
