"""``python3 agent.pyz --stdio``: serve one desk on standard input and output."""

import os
import signal
import stat
import sys
import tty
from typing import List, Optional

from . import AGENT_VERSION, journal, watchdog
from .operations import Agent
from .server import Server, Terminated
from .wire import Wire

USAGE = """\
usage: agent.pyz --stdio [--unlink] [--workdir DIR] | --restore | --version
  --stdio    serve one desk on standard input and output
  --unlink   first remove the agent's own file
  --workdir  where commands start (default: a private directory)
  --restore  put tracing back after a dead agent
"""


def main(argv: Optional[List[str]] = None) -> int:
    """Run the agent; returns its exit status."""
    # argparse alone would double the start-up time on a slow target.
    words = list(sys.argv[1:] if argv is None else argv)
    workdir = None
    if "--workdir" in words[:-1]:
        at = words.index("--workdir")
        workdir = words[at + 1]
        del words[at : at + 2]
    if words == ["--version"]:
        print(AGENT_VERSION)
        return 0
    if words == ["--restore"]:
        print("\n".join(journal.repair()) or "nothing to restore")
        return 0
    if not words or any(word not in ("--stdio", "--unlink") for word in words):
        sys.stderr.write(USAGE)
        return 2
    if "--unlink" in words:
        os.unlink(sys.argv[0])  # everything is imported by now
    return serve(workdir)


def serve(workdir: Optional[str]) -> int:
    """Serve standard input and output until they end."""
    os.umask(0o022)
    repaired = journal.repair()
    port = os.readlink("/proc/self/fd/1") if _is_port(1) else ""
    dog = watchdog.start(port)  # before any thread, and before the wire: it must hold neither
    read_fd, write_fd = _take_stdio()
    wire = Wire(read_fd, write_fd)
    agent = Agent(workdir, repaired)
    server = Server(wire, agent.operations(), agent.greeting, patient=_is_port(read_fd))
    server.on_hello = lambda nonce: _note_nonce(dog, nonce)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: server.terminate())
    try:
        server.run()
    except Terminated:
        pass
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        problems = agent.close()
        wire.restore()
    for problem in problems:
        sys.stderr.write("kwhy agent: not restored: %s\n" % problem)
    sys.stderr.flush()
    os._exit(1 if problems else 0)  # do not wait for a thread that hangs in the kernel


def _note_nonce(pipe: int, nonce: bytes) -> None:
    try:
        os.write(pipe, nonce)
    except OSError:
        pass  # the watchdog was killed; the next agent repairs


def _take_stdio() -> "tuple[int, int]":
    """Move the wire away from 0 and 1, so that nothing else reads or prints into it."""
    read_fd, write_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    if os.isatty(read_fd):
        tty.setraw(read_fd)
    return read_fd, write_fd


def _is_port(fd: int) -> bool:
    """A character device (a virtio port) outlives its clients, and shows an end without one."""
    return stat.S_ISCHR(os.fstat(fd).st_mode) and not os.isatty(fd)


if __name__ == "__main__":
    sys.exit(main())
