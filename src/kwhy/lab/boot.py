"""How a guest is started: its QEMU command line, its process, and the wait until it listens."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kwhy.errors import FeatureError, LinkError, UsageError
from kwhy.lab import fetch, rootfs
from kwhy.lab.guest import AGENT_PORTS, Guest, Identity, check_name, find, process_start, sweep
from kwhy.lab.kernels import KernelVersion
from kwhy.lab.paths import remove, state_dir
from kwhy.lab.progress import Progress

#: Seconds a guest may take from power-on to a listening init. Emulated, on a busy machine.
BOOT_LIMIT = 120.0


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
