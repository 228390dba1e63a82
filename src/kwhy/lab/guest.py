"""A guest: one Debian kernel running in QEMU, its sockets, and its end.

A disposable guest dies with the process that started it, even when that is killed; a named one
(``keep``) stays until ``stop``. Either way everything about it lies in one directory of
:func:`~kwhy.lab.paths.state_dir`, so that another process can find it.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kwhy.errors import LinkError, UsageError
from kwhy.lab.paths import remove, state_dir
from kwhy.lab.qmp import Qmp

#: How many desks can talk to one guest at a time, each with an agent of its own.
AGENT_PORTS = 4
#: Seconds to write a guest's memory to a file.
DUMP_LIMIT = 120.0
#: Seconds in which a guest answers that has nothing else to do.
_SOON = 3.0
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,30}")


@dataclass(frozen=True)
class Identity:
    """What is written down about a guest, for other processes."""

    name: str
    release: str
    version: str
    pid: int
    started: str  # of the process, by /proc: a process number may be reused


class AgentStream(socket.socket):
    """A connection to an agent's port, which is ours until it is closed or this process ends."""

    def __init__(self, lock: IO[str]) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._lock = lock

    def close(self) -> None:
        """Hang up; the agent tidies up and ends, and the port is free for others."""
        super().close()
        self._lock.close()


class Guest:
    """A running guest."""

    def __init__(
        self, directory: Path, identity: Identity, process: subprocess.Popen[bytes] | None
    ) -> None:
        self.directory = directory
        self.identity = identity
        self._process = process

    @property
    def name(self) -> str:
        """The given name, or one made up."""
        return self.identity.name

    @property
    def release(self) -> str:
        """Its ``uname -r``."""
        return self.identity.release

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self.identity.pid

    @property
    def console_log(self) -> Path:
        """What the kernel wrote to its console."""
        return self.directory / "console.log"

    @property
    def shell_socket(self) -> Path:
        """A unix socket: the guest's terminal hvc0 with a root shell."""
        return self.directory / "shell"

    @property
    def control_socket(self) -> Path:
        """QEMU's (not the guest's) control socket; it speaks QMP with one client at a time."""
        return self.directory / "qmp"

    def qmp(self) -> Qmp:
        """A connection to QEMU's control socket."""
        return Qmp(self.control_socket)

    def answers(self, timeout: float) -> bool:
        """Whether the guest's process 1 says anything within ``timeout`` seconds."""
        for seconds in (min(_SOON, timeout), timeout):
            try:
                self.control("ping", seconds)
                return True
            except LinkError:
                if self._paused():
                    break
        return False

    def _paused(self) -> bool:
        with contextlib.suppress(LinkError), contextlib.closing(self.qmp()) as qmp:
            return not qmp.command("query-status")["running"]
        return False

    def running(self) -> bool:
        """Whether QEMU still runs."""
        if self._process is not None:
            return self._process.poll() is None
        return process_start(self.pid) == self.identity.started

    def exit_status(self) -> int | None:
        """QEMU's, negative for a signal; None while it runs, or if another process started it."""
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)  # its sockets close a moment before it ends
        return self._process.returncode

    def open_agent(self, timeout: float = 60.0) -> "AgentStream":
        """A stream to a fresh agent in the guest. Raises LinkError.

        Closing it ends the agent. Up to :data:`AGENT_PORTS` at a time, over all processes.
        """
        port, lock = self._free_port()
        stream = AgentStream(lock)
        try:
            stream.connect(str(self.directory / f"agent.{port}"))
            answer = self.control(f"open {port}", timeout)
            if answer != "ok":
                raise LinkError(f"guest {self.name}: no agent: {answer}")
        except OSError as error:
            stream.close()
            raise self._lost(str(error)) from None
        except BaseException:
            stream.close()
            raise
        return stream

    def control(self, request: str, timeout: float = 30.0) -> str:
        """Ask the guest's process 1 something; its one-line answer. Raises LinkError."""
        deadline = time.monotonic() + timeout
        with (
            (self.directory / "control.lock").open("a") as lock,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream,
        ):
            self._lock_until(lock, deadline)
            try:
                stream.connect(str(self.directory / "control"))
                stream.sendall(request.encode() + b"\n")
                answer = b""
                while not answer.endswith(b"\n"):
                    stream.settimeout(min(1.0, max(0.01, deadline - time.monotonic())))
                    try:
                        data = stream.recv(4096)
                    except TimeoutError:
                        if time.monotonic() >= deadline:
                            raise self._lost("it does not answer") from None
                        continue
                    if not data:
                        raise self._lost("it ended")
                    answer += data
            except OSError as error:
                raise self._lost(error.strerror or "no contact") from None
        return answer.decode().strip()

    def dump(self, path: Path, form: str = "elf") -> None:
        """Write the guest's memory to ``path``: a vmcore that drgn opens. The guest runs on after.

        ``form`` is QEMU's: "elf", or "kdump-zlib" and its like. About 3 s and as many bytes as the
        guest has memory; compressed, more and fewer. Raises LinkError.
        """
        qmp = self.qmp()
        try:
            where = f"file:{path.absolute()}"
            qmp.command(
                "dump-guest-memory", timeout=DUMP_LIMIT, paging=False, protocol=where, format=form
            )
        except TimeoutError as error:
            raise self._lost(str(error)) from None
        finally:
            qmp.close()

    def stop(self) -> None:
        """End the guest and forget it. Its state is thrown away: nothing needs an orderly end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        elif self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            deadline = time.monotonic() + 5
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.01)
        remove(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def console_tail(self, lines: int = 5) -> str:
        """The last lines of the console, for error messages; a panic's reason before its trace."""
        try:
            data = self.console_log.read_bytes()[-8192:]
        except OSError:
            return ""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e\n]", "", data.decode("ascii", "replace"))
        shown = [line for line in text.splitlines() if line.strip()]
        panics = [index for index, line in enumerate(shown) if "Kernel panic" in line]
        if panics:  # what came before it tells more than the trace behind it
            return "\n".join(shown[max(0, panics[0] - lines) : panics[0] + 1])
        return "\n".join(shown[-lines:])

    def _lost(self, why: str) -> LinkError:
        self.exit_status()
        if not self.running():
            why = "QEMU ended"
        tail = self.console_tail()
        return LinkError(f"lost the guest {self.name}: {why}" + (f"\n{tail}" if tail else ""))

    def _free_port(self) -> tuple[int, IO[str]]:
        for port in range(AGENT_PORTS):
            lock = (self.directory / f"agent.{port}.lock").open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return port, lock
            except BlockingIOError:
                lock.close()
        raise LinkError(f"guest {self.name} is busy: {AGENT_PORTS} commands use it already")

    def _lock_until(self, lock: IO[str], deadline: float) -> None:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LinkError(f"guest {self.name} is busy with another kwhy") from None
                time.sleep(0.02)


def check_name(name: str) -> None:
    """Raises UsageError unless ``name`` can be a guest's: no version number, no path."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a guest: a letter, then up to 30 letters, digits, '.', '_', '-'"
        )


def sweep() -> None:
    """Delete what disposable guests left behind whose process was killed."""
    for path in (state_dir() / "guests").glob(".*-*"):
        owner = path.name[1:].split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                remove(path)


def find(name: str) -> Guest | None:
    """The running guest of that name, or None."""
    if not _NAME.fullmatch(name):
        return None
    return _read(state_dir() / "guests" / name)


def running_guests() -> Iterator[Guest]:
    """All named guests that run."""
    base = state_dir() / "guests"
    for path in sorted(base.iterdir()) if base.is_dir() else []:
        if not path.name.startswith("."):
            guest = _read(path)
            if guest:
                yield guest


def _read(directory: Path) -> Guest | None:
    try:
        identity = Identity(**json.loads((directory / "guest.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    guest = Guest(directory, identity, None)
    if guest.running():
        return guest
    remove(directory)
    return None


def process_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks (proc(5), field 22 of stat); None: no such."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
