#!/usr/bin/python3 -ES
"""Process 1 of a lab guest: prepares the machine, then serves the desk over virtio ports.

It runs in the guest under the root file system's own Python and imports nothing of kwhy.

Ports (/dev/virtio-ports/NAME):
``kwhy.control``   one request per line, one answer per line: ``open N`` starts a fresh agent on
                   agent port N and answers ``ok`` when it is there, ``poweroff`` ends the guest.
``kwhy.agent.N``   standard input and output of the agent started for port N. When the desk hangs
                   up, its agent gets a moment to tidy up by itself and is then killed.
/dev/hvc0          a root shell, started when the first byte arrives.
"""

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import NoReturn

AGENT = "/kwhy/agent.pyz"
WORK = "/root"
PORTS = "/dev/virtio-ports"
#: Seconds an agent has to end after its desk hung up, before SIGTERM and again before SIGKILL.
GRACE = 3.0

libc = ctypes.CDLL(None, use_errno=True)

MOUNTS = [
    ("proc", "/proc", "proc", ""),
    ("sysfs", "/sys", "sysfs", ""),
    ("devtmpfs", "/dev", "devtmpfs", "mode=0755"),
    ("devpts", "/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "tmpfs", "mode=1777"),
    ("tmpfs", "/run", "tmpfs", "mode=0755"),
    ("tmpfs", "/tmp", "tmpfs", "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", ""),
    ("securityfs", "/sys/kernel/security", "securityfs", ""),
    ("debugfs", "/sys/kernel/debug", "debugfs", ""),
    ("tracefs", "/sys/kernel/tracing", "tracefs", ""),
    ("bpf", "/sys/fs/bpf", "bpf", ""),
]


def mount_all() -> None:
    for source, target, kind, options in MOUNTS:
        try:
            os.makedirs(target, exist_ok=True)
        except OSError:
            continue  # a directory of sysfs that this kernel does not have
        libc.mount(source.encode(), target.encode(), kind.encode(), 0, options.encode())


def parameters() -> dict[str, str]:
    """The words of the kernel command line that start with ``kwhy.``."""
    with open("/proc/cmdline") as file:
        words = file.read().split()
    pairs = (word[5:].partition("=") for word in words if word.startswith("kwhy."))
    return {name: value for name, _, value in pairs}


def loopback_up() -> None:
    """The flags of `lo` (netdevice(7))."""
    SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        name, flags = struct.unpack("16sH14x", fcntl.ioctl(sock, SIOCGIFFLAGS, request))
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", name, flags | IFF_UP))


def load_modules() -> None:
    """What the desk needs of the guest; built into most of the kernels, and then nothing happens.

    qemu_fw_cfg tells QEMU where the kernel's memory notes are, so that its dumps can be opened.
    """
    wanted = ["qemu_fw_cfg"]
    if not os.path.isdir("/sys/bus/virtio/drivers/virtio_console"):
        wanted[:0] = ["virtio_pci", "virtio_console"]
    subprocess.call(["/sbin/modprobe", "-qab", *wanted])


def link_ports() -> None:
    """/dev/virtio-ports/NAME, which udev would make."""
    os.makedirs(PORTS, exist_ok=True)
    base = "/sys/class/virtio-ports"
    for device in os.listdir(base):
        try:
            with open(f"{base}/{device}/name") as file:
                name = file.read().strip()
        except OSError:
            continue
        link = f"{PORTS}/{name}"
        if name and not os.path.lexists(link):
            os.symlink(f"../{device}", link)


def prepare() -> None:
    os.umask(0o022)
    os.chmod("/", 0o755)  # the initramfs's own root is a tmpfs that everybody may write to
    os.chmod(WORK, 0o755)  # a command may run as another user
    os.environ.update(
        PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        HOME=WORK,
        TERM="linux",
        LANG="C.UTF-8",
        USER="root",
        LOGNAME="root",
        SHELL="/bin/bash",
    )
    mount_all()
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        if not os.path.lexists(f"/dev/{name}"):
            os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")
    os.makedirs("/run/lock", exist_ok=True)
    for directory in ("/var/tmp", "/var/lib", "/var/log", "/var/cache", WORK):
        os.makedirs(directory, exist_ok=True)
    settings = parameters()
    socket.sethostname(settings.get("host", "lab"))
    try:
        loopback_up()
    except OSError as error:
        print("kwhy: no loopback:", error, file=sys.stderr)
    load_modules()
    deadline = time.monotonic() + 60
    while True:
        try:
            link_ports()
        except OSError:
            pass
        if os.path.exists(f"{PORTS}/kwhy.control") or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    os.chdir(WORK)


class Server:
    """The loop of process 1."""

    def __init__(self) -> None:
        self.agents: dict[int, int] = {}  # port number: pid
        #: Ports whose desk is gone: when to send the agent which signal.
        self.hangups: dict[int, tuple[float, int]] = {}
        self.control = os.open(f"{PORTS}/kwhy.control", os.O_RDWR | os.O_NONBLOCK)
        self.pending = b""
        self.wake_read, wake_write = os.pipe()
        for fd in (self.wake_read, wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        # virtio_console sends SIGIO when the desk connects, hangs up, or sends something. Without
        # it a port with no desk could only be polled: it always reports a hang-up.
        for number in (signal.SIGIO, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        fcntl.fcntl(self.control, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(self.control, fcntl.F_GETFL)
        fcntl.fcntl(self.control, fcntl.F_SETFL, flags | os.O_ASYNC)
        self.shell = self.start_shell()

    def run(self) -> None:
        while True:
            self.reap()
            self.read_control()  # also before the first wait: the desk may have been first
            select.select([self.wake_read], [], [], self.check_agents())
            try:
                while os.read(self.wake_read, 4096):
                    pass
            except BlockingIOError:
                pass

    def reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.shell:
                self.shell = self.start_shell()
            for port, agent in list(self.agents.items()):
                if agent == pid:
                    del self.agents[port]

    def read_control(self) -> None:
        while True:
            try:
                data = os.read(self.control, 4096)
            except OSError:
                return
            if not data:
                self.pending = b""
                return
            self.pending += data
            while b"\n" in self.pending:
                line, _, self.pending = self.pending.partition(b"\n")
                self.answer(self.obey(line.decode("ascii", "replace").split()))

    def answer(self, text: str) -> None:
        data = text.encode() + b"\n"
        deadline = time.monotonic() + 2
        while data and time.monotonic() < deadline:
            try:
                data = data[os.write(self.control, data) :]
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                return

    def obey(self, words: list[str]) -> str:
        if words[:1] == ["open"] and len(words) == 2 and words[1].isdigit():
            return self.open_agent(int(words[1]))
        if words == ["ping"]:
            return "ok"
        if words == ["poweroff"]:
            power_off()
        return "error what?"

    # Agents

    def open_agent(self, port: int) -> str:
        """A fresh agent on a port; the one before it, if it still lives, ends first."""
        old = self.agents.get(port)
        if old is not None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                self.kill(old, number)
                if self.wait_gone(port, GRACE):
                    break
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            become_agent(port, writer)
        os.close(writer)
        self.agents[port] = pid
        # The child has the port open before it says so; then the desk may send.
        answer = os.read(reader, 200).decode() or "error the agent did not start"
        os.close(reader)
        return answer

    def wait_gone(self, port: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while port in self.agents and time.monotonic() < deadline:
            select.select([self.wake_read], [], [], 0.1)
            self.reap()
        return port not in self.agents

    def check_agents(self) -> float | None:
        """Ends agents whose desk hung up; gives the seconds until there is something to check.

        An agent that writes to a port without a desk would block for ever and leave tracing armed
        (will_write_block() in drivers/char/virtio_console.c).
        """
        now = time.monotonic()
        timeout: float | None = None
        for port in list(self.hangups):
            if port not in self.agents:
                del self.hangups[port]
        for port, pid in self.agents.items():
            if self.has_desk(port):
                self.hangups.pop(port, None)
                wait = 1.0
            else:
                deadline, number = self.hangups.setdefault(port, (now + GRACE, int(signal.SIGTERM)))
                if now >= deadline:
                    self.kill(pid, number)
                    self.hangups[port] = (now + GRACE, int(signal.SIGKILL))
                wait = 0.5
            timeout = wait if timeout is None else min(timeout, wait)
        return timeout

    def has_desk(self, port: int) -> bool:
        """Whether somebody holds the other end, from debugfs: we cannot open the port as well."""
        try:
            device = os.path.basename(os.readlink(f"{PORTS}/kwhy.agent.{port}"))
            with open(f"/sys/kernel/debug/virtio-ports/{device}") as file:
                return "host_connected: 1" in file.read()
        except OSError:
            return True

    @staticmethod
    def kill(pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    # The shell on hvc0

    def start_shell(self) -> int | None:
        if not os.path.exists("/dev/hvc0"):
            return None
        pid = os.fork()
        if pid:
            return pid
        reset_signals()
        os.setsid()
        terminal = os.open("/dev/hvc0", os.O_RDWR)
        fcntl.ioctl(terminal, 0x540E, 0)  # TIOCSCTTY, ioctl_tty(2)
        os.read(terminal, 4096)  # nobody there yet: no shell yet
        for fd in (0, 1, 2):
            os.dup2(terminal, fd)
        os.execv("/bin/bash", ["-bash"])


def reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGIO, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def become_agent(port: int, ready: int) -> NoReturn:
    """In the child: a session of its own, the port as standard input and output, the agent."""
    try:
        reset_signals()
        os.setsid()
        log = os.open(
            f"/run/kwhy-agent-{port}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        )
        deadline = time.monotonic() + 5
        while True:
            try:
                stream = os.open(f"{PORTS}/kwhy.agent.{port}", os.O_RDWR)
                break
            except OSError as error:
                # The port admits one at a time; the last agent may just be closing it.
                if time.monotonic() > deadline:
                    os.write(ready, f"error {error.strerror}".encode())
                    os._exit(1)
                time.sleep(0.02)
        os.dup2(stream, 0)
        os.dup2(stream, 1)
        os.dup2(log, 2)
        os.closerange(3, ready)
        os.chdir(WORK)
        os.write(ready, b"ok")
        os.execv("/usr/bin/python3", ["python3", AGENT, "--stdio"])
    except BaseException as error:
        os.write(2, f"kwhy: {error!r}\n".encode())
    finally:
        os._exit(127)


def power_off() -> NoReturn:
    os.sync()
    libc.reboot(0x4321FEDC)  # LINUX_REBOOT_CMD_POWER_OFF, reboot(2)
    raise SystemExit


def main() -> None:
    prepare()
    Server().run()


if __name__ == "__main__":
    main()
