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
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kwhy.errors import FeatureError, LinkError, UsageError
from kwhy.lab import fetch, rootfs
from kwhy.lab.kernels import KernelVersion
from kwhy.lab.paths import remove, state_dir
from kwhy.lab.progress import Progress
from kwhy.lab.qmp import Qmp

#: How many desks can talk to one guest at a time, each with an agent of its own.
AGENT_PORTS = 4
#: Seconds a guest may take from power-on to a listening init. Emulated, on a busy machine.
BOOT_LIMIT = 120.0
#: Seconds to write a guest's memory to a file.
DUMP_LIMIT = 120.0
#: Seconds in which a guest answers that has nothing else to do.
_SOON = 3.0
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,30}")


@dataclass(frozen=True)
class Settings:
    """How to start a guest."""

    memory: int = 1024  # MiB
    cpus: int = 1
    append: str = ""  # more kernel parameters
    kvm: bool = False
    qemu: tuple[str, ...] = ()  # more arguments for QEMU
    keep: bool | None = None  # outlive this process; None: if the guest has a name
    files: Mapping[str, Path] = field(default_factory=dict)  # guest path: local file or tree


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


def start(
    kernel: KernelVersion,
    agent: bytes,
    name: str | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Guest:
    """Boot ``kernel``; returns when the guest listens.

    ``agent`` is the zipapp to put into it. With a ``name`` other processes can find the guest, and
    it outlives this one unless ``settings.keep`` is false.
    Raises UsageError (the name), FeatureError (no QEMU), LinkError (it does not come up; with the
    last lines of its console).
    """
    settings = settings or Settings()
    shown = progress or Progress()
    if name is not None:
        check_name(name)
        if find(name):
            raise UsageError(f"a guest {name!r} runs already: kwhy lab stop {name}")
    files = fetch.get_newest(kernel, ["image"], shown)
    images = rootfs.image(files, shown)
    directory = _make_directory(name)
    try:
        initrd = directory / "initrd"
        extra = rootfs.guest_archive(agent, dict(settings.files))
        with initrd.open("wb") as out:
            for image in images:
                with image.open("rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
            out.write(extra)
        command = qemu_command(files, directory, initrd, name or "lab", settings)
        keep = name is not None if settings.keep is None else settings.keep
        process = _spawn(command, directory, keep)
        identity = Identity(
            name=name or directory.name,
            release=files.release,
            version=files.kernel.version,
            pid=process.pid,
            started=process_start(process.pid) or "",
        )
        guest = Guest(directory, identity, process)
    except BaseException:
        remove(directory)
        raise
    try:
        _wait_booted(guest)
        initrd.unlink()
        # Written last: a guest that can be found is a guest that works.
        facts = directory / "guest.json"
        facts.with_suffix(".new").write_text(json.dumps(asdict(identity)))
        facts.with_suffix(".new").rename(facts)
    except BaseException:
        guest.stop()
        raise
    return guest


def qemu_command(
    files: fetch.KernelFiles, directory: Path, initrd: Path, host: str, settings: Settings
) -> list[str]:
    """QEMU's command line for a guest."""
    quiet = "" if "loglevel=" in settings.append else "quiet"
    append = (
        # Quiet: each character on the emulated serial line costs; panics still show.
        f"console=ttyS0 {quiet} panic=-1 kwhy.host={host} rdinit=/init"
        " random.trust_cpu=on tsc=reliable no_timer_check nowatchdog cryptomgr.notests"
        # The root file system is all there is in memory: let it use what there is.
        f" rootflags=size=90% net.ifnames=0 {settings.append}"
    )
    command = [
        "qemu-system-x86_64",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-machine",
        "q35,accel=kvm" if settings.kvm else "q35,accel=tcg",
        "-cpu",
        "host" if settings.kvm else "max",
        "-smp",
        str(settings.cpus),
        "-m",
        f"{settings.memory}M",
        "-kernel",
        str(files.vmlinuz),
        "-initrd",
        str(initrd),
        "-append",
        append.strip(),
        "-device",
        "vmcoreinfo",
        "-chardev",
        f"file,id=console,path={directory}/console.log",
        "-serial",
        "chardev:console",
        "-qmp",
        f"unix:{directory}/qmp,server=on,wait=off",
        "-device",
        "virtio-serial-pci,max_ports=16",
        "-chardev",
        f"socket,id=shell,path={directory}/shell,server=on,wait=off",
        "-device",
        "virtconsole,chardev=shell,name=kwhy.shell",
    ]
    for port in ["control", *(f"agent.{number}" for number in range(AGENT_PORTS))]:
        identifier = port.replace(".", "-")
        command += [
            "-chardev",
            f"socket,id={identifier},path={directory}/{port},server=on,wait=off",
            "-device",
            f"virtserialport,chardev={identifier},name=kwhy.{port},id={identifier}",
        ]
    return command + list(settings.qemu)


# A process asked to die with its parent (PR_SET_PDEATHSIG, prctl(2)) really dies with the *thread*
# that started it. So one thread that lasts as long as this process starts them all.
_spawner: ThreadPoolExecutor | None = None


def _spawn(command: list[str], directory: Path, keep: bool) -> subprocess.Popen[bytes]:
    global _spawner
    if _spawner is None:
        _spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kwhy-lab")
    if not keep:
        command = ["setpriv", "--pdeathsig", "KILL", *command]

    def run() -> subprocess.Popen[bytes]:
        with (directory / "qemu.log").open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for us; we end the guest when we have put things in order.
                start_new_session=True,
            )

    try:
        return _spawner.submit(run).result()
    except FileNotFoundError:
        raise FeatureError(
            "the lab needs QEMU: apt-get install qemu-system-x86", "qemu-system-x86_64"
        ) from None


def _wait_booted(guest: Guest) -> None:
    """Until init has the control port open. Raises LinkError."""
    deadline = time.monotonic() + BOOT_LIMIT
    socket_path = guest.directory / "qmp"
    while not socket_path.exists():
        if not guest.running() or time.monotonic() > deadline:
            raise _failed_start(guest)
        time.sleep(0.005)
    try:
        qmp = guest.qmp()
        try:
            opened = qmp.wait_event(
                lambda event: (
                    event["event"] == "VSERPORT_CHANGE"
                    and event["data"]["id"] == "control"
                    and event["data"]["open"]
                ),
                deadline - time.monotonic(),
            )
        finally:
            qmp.close()
    except LinkError:
        raise _failed_start(guest) from None
    if opened is None:
        tail = guest.console_tail()
        raise LinkError(f"the guest did not come up within {BOOT_LIMIT:.0f} s\n{tail}".strip())


def _failed_start(guest: Guest) -> LinkError:
    with contextlib.suppress(OSError):
        log = (guest.directory / "qemu.log").read_text(errors="replace").strip().splitlines()
        if log:
            return LinkError(f"QEMU ended at start: {log[-1]}")
    status = guest.exit_status()
    if status is not None and status < 0:
        return LinkError(f"QEMU was killed by signal {-status} while the guest booted")
    tail = guest.console_tail()
    return LinkError("the guest ended while it booted" + (f":\n{tail}" if tail else ""))


def check_name(name: str) -> None:
    """Raises UsageError unless ``name`` can be a guest's: no version number, no path."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a guest: a letter, then up to 30 letters, digits, '.', '_', '-'"
        )


def _make_directory(name: str | None) -> Path:
    base = state_dir() / "guests"
    base.mkdir(mode=0o700, exist_ok=True)
    if name is None:
        sweep()
        return Path(tempfile.mkdtemp(prefix=f".{os.getpid()}-", dir=base))
    directory = base / name
    remove(directory)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise UsageError(f"a guest {name!r} is just being started") from None
    return directory


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
