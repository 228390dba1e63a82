"""Known waits for files, devices and control groups of a stock kernel; see stock.py."""

import ctypes
import fcntl
import mmap
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable

from stock import (
    FANOTIFY_INIT,
    FANOTIFY_MARK,
    LIBC,
    asleep,
    call_me,
    loopback_up,
    process,
    sleep,
    system,
    thread,
)

MOUNT = 165
FIFREEZE = 0xC0045877
FUSE_OPEN, FUSE_READ, FUSE_INIT, FUSE_GETATTR, FUSE_LOOKUP = 14, 15, 26, 3, 1
FILE_SIZE = 1 << 20


def module(name: str) -> None:
    """Load a kernel module."""
    subprocess.run(["modprobe", name], check=True)


# -- FUSE ------------------------------------------------------------------------------------------


def serve(device: int, until: int) -> None:
    """Answer requests of a file system with one file, up to the first of the kind ``until``.

    0: only the one that it begins with.
    """
    attributes = struct.pack("QQQQQQIIIIIIIIII", 2, FILE_SIZE, 8, 0, 0, 0, 0, 0, 0, 0o100644, 1, 0,
                             0, 0, 4096, 0)  # fmt: skip
    root = struct.pack("QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o040755, 2, 0, 0, 0, 4096, 0)
    while True:
        raw = os.read(device, 1 << 17)
        _size, kind, unique, node = struct.unpack_from("IIQQ", raw)
        if kind == until:
            return
        answers = {
            FUSE_INIT: struct.pack("IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 10, 65536, 1, 0, 0, 0),
            FUSE_GETATTR: struct.pack("QII", 100, 0, 0) + (root if node == 1 else attributes),
            FUSE_LOOKUP: struct.pack("QQQQII", 2, 0, 100, 100, 0, 0) + attributes,
            FUSE_OPEN: struct.pack("QII", 7, 0, 0),
        }
        body = answers.get(kind)
        error = 0 if body is not None else -38
        body = body or b""
        os.write(device, struct.pack("IiQ", 16 + len(body), error, unique) + body)
        if not until:
            return


def fuse(name: str, until: int, end: Callable[[str], object]) -> str:
    """A daemon called ``name`` that serves up to a request, then does ``end``; the mount point."""
    module("fuse")
    where = tempfile.mkdtemp()

    def daemon() -> None:
        device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        system(MOUNT, b"kwhy", where.encode(), b"fuse.kwhy", 0, options)
        serve(device, until)
        end(where)

    asleep(process(name, daemon))
    return where


def stop_me(_where: str) -> None:
    """Stop the calling process as by Ctrl-Z."""
    os.kill(os.getpid(), signal.SIGSTOP)


def fuse_stopped() -> None:
    where = fuse("fused", FUSE_LOOKUP, stop_me)
    process("fuseuser", lambda: os.stat(f"{where}/file"))


def fuse_fault() -> None:
    """A page fault holds the map's lock while the daemon is stopped; another thread wants it."""
    where = fuse("faultd", FUSE_READ, stop_me)

    def user() -> None:
        kept = mmap.mmap(os.open(f"{where}/file", os.O_RDONLY), 4096, prot=mmap.PROT_READ)
        call_me("mapper")
        at = address_of_mapping()
        thread("toucher", lambda: LIBC.strlen(ctypes.c_void_p(at)))
        kept.close()

    process("mapper", user)


def address_of_mapping() -> int:
    """The address where the file is mapped, from the list of mappings."""
    with open("/proc/self/maps") as file:
        line = next(line for line in file if line.rstrip().endswith("/file"))
    return int(line.split("-")[0], 16)


def fuse_ring() -> None:
    """The daemon opens a file of the file system that it serves."""
    where = fuse("selffused", FUSE_LOOKUP, lambda where: os.stat(f"{where}/other"))
    process("selfuser", lambda: os.stat(f"{where}/file"))


# -- disks -----------------------------------------------------------------------------------------


def image(megabytes: int = 32) -> str:
    """A loop device with an empty ext4 file system."""
    module("loop")
    module("ext4")
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", file.name], check=True)
    out = subprocess.run(["losetup", "-f", "--show", file.name], check=True, capture_output=True)
    return out.stdout.decode().strip()


def mounted(device: str) -> str:
    """Mount an ext4 file system; the mount point."""
    where = tempfile.mkdtemp()
    system(MOUNT, device.encode(), where.encode(), b"ext4", 0, 0)
    return where


def freeze(where: str) -> None:
    """Freeze the file system mounted there."""
    one = os.open(where, os.O_RDONLY)
    fcntl.ioctl(one, FIFREEZE, 0)
    os.close(one)


def create(path: str) -> None:
    """Create a file."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def frozen() -> None:
    where = mounted(image())
    os.mkdir(f"{where}/d")
    freeze(where)
    asleep(process("frozentouch", lambda: create(f"{where}/d/new")))
    process("frozenmore", lambda: create(f"{where}/d/more"))


def mapper(kind: str, name: str, table: bytes = b"") -> int:
    """One request of the device mapper: linux/dm-ioctl.h."""
    control = os.open("/dev/mapper/control", os.O_RDWR)
    numbers, flags = {"create": 3, "suspend": 6, "resume": 6, "load": 9}, {"suspend": 2}
    size = 312 + len(table)
    head = struct.pack("IIIIIIiIIIQ128s129s7x", 4, 0, 0, size, 312, 1 if table else 0, 0,
                       flags.get(kind, 0), 0, 0, 0, name.encode(), b"")  # fmt: skip
    command = 3 << 30 | 312 << 16 | 0xFD << 8 | numbers[kind]
    out = bytearray(head.ljust(312, b"\0") + table)
    fcntl.ioctl(control, command, out)
    os.close(control)
    return int(struct.unpack_from("Q", out, 40)[0])


def mapped(name: str) -> str:
    """A device-mapper device on all of a new loop device; its node."""
    module("dm-mod")
    below = image()
    with open(f"/sys/block/{os.path.basename(below)}/size") as file:
        sectors = int(file.read())
    number = mapper("create", name)
    words = f"{below} 0".encode().ljust(64, b"\0")
    table = struct.pack("QQiI16s", 0, sectors, 0, 40 + 64, b"linear") + words
    mapper("load", name, table)
    mapper("resume", name)
    node = f"/dev/{name}"
    if not os.path.exists(node):
        os.mknod(node, 0o60600, os.makedev(number >> 8 & 0xFFF, number & 0xFF))
    return node


def suspended() -> None:
    """Readers, a writer with fsync and sync behind a suspended device-mapper device."""
    node = mapped("kwhysus")
    where = mounted(node)
    one = os.open(f"{where}/file", os.O_CREAT | os.O_WRONLY)
    os.fsync(one)
    mapper("suspend", "kwhysus")

    def writer() -> None:
        os.write(one, b"x" * 65536)
        os.fsync(one)

    def reader() -> None:
        os.read(os.open(node, os.O_RDONLY), 4096)

    process("dmfsync", writer, [one])
    process("dmreader", reader)
    os.close(one)


def suspended_sync() -> None:
    node = mapped("kwhysync")
    where = mounted(node)
    with open(f"{where}/file", "w") as file:
        file.write("x" * 65536)
    mapper("suspend", "kwhysync")
    process("dmsync", os.sync)


def network_disk() -> None:
    """A network block device whose server does not answer."""
    module("nbd")
    one, two = socket.socketpair()

    def driver() -> None:
        device = os.open("/dev/nbd0", os.O_RDWR)
        fcntl.ioctl(device, 0xAB01, 512)  # NBD_SET_BLKSIZE
        fcntl.ioctl(device, 0xAB07, 2048)  # NBD_SET_SIZE_BLOCKS
        fcntl.ioctl(device, 0xAB00, one.fileno())  # NBD_SET_SOCK
        fcntl.ioctl(device, 0xAB03)  # NBD_DO_IT

    process("nbdclient", driver, [one.fileno()])
    asleep(process("nbdserver", sleep, [two.fileno()]))
    process("nbdreader", lambda: os.read(os.open("/dev/nbd0", os.O_RDONLY), 4096))


def loop_below_frozen() -> None:
    """A loop device whose file lies on a frozen file system."""
    where = mounted(image())
    inner = f"{where}/inner"
    with open(inner, "w") as file:
        file.truncate(8 << 20)
    out = subprocess.run(["losetup", "-f", "--show", inner], check=True, capture_output=True)
    device = out.stdout.decode().strip()
    freeze(where)

    def writer() -> None:
        one = os.open(device, os.O_WRONLY)
        os.write(one, b"x" * 4096)
        os.fsync(one)

    process("loopwriter", writer)


# -- network file system ---------------------------------------------------------------------------


def dead_server() -> None:
    """An NFS server that takes connections and says nothing."""
    module("nfsv3")
    loopback_up()
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    where = tempfile.mkdtemp()
    options = (
        f"addr=127.0.0.1,vers=3,proto=tcp,mountproto=tcp,mountaddr=127.0.0.1,port={port},"
        f"mountport={port},mountvers=3,hard,nolock"
    )
    process("nfsserver", lambda: (server.accept(), sleep()), [server.fileno()])
    server.close()

    def mount() -> None:
        system(MOUNT, b"127.0.0.1:/export", where.encode(), b"nfs", 0, options.encode())

    process("nfsmount", mount)


# -- fanotify --------------------------------------------------------------------------------------


def scanner() -> None:
    """A virus scanner that does not answer whether a file may be opened."""
    directory = tempfile.mkdtemp()
    create(f"{directory}/file")
    group = system(FANOTIFY_INIT, 4, 0)  # FAN_CLASS_CONTENT
    mask = 0x08010000  # FAN_OPEN_PERM, FAN_EVENT_ON_CHILD
    system(FANOTIFY_MARK, group, 1, mask, -100, directory.encode())
    process("scanner", sleep, [group])
    process("scanned", lambda: os.open(f"{directory}/file", os.O_RDONLY))


# -- control groups --------------------------------------------------------------------------------


def group(name: str) -> str:
    """A new group of the unified hierarchy."""
    top = "/sys/fs/cgroup"
    if not os.path.exists(f"{top}/cgroup.procs"):
        system(MOUNT, b"cgroup2", top.encode(), b"cgroup2", 0, 0)
    with open(f"{top}/cgroup.subtree_control", "w") as file:
        file.write("+memory +pids")
    os.makedirs(f"{top}/{name}", exist_ok=True)
    return f"{top}/{name}"


def write(path: str, text: object) -> None:
    """Write a file of a pseudo file system."""
    with open(path, "w") as file:
        file.write(str(text))


def frozen_group() -> None:
    where = group("icebox")
    number = process("cold", sleep)
    asleep(number)
    write(f"{where}/cgroup.procs", number)
    write(f"{where}/cgroup.freeze", 1)


def memory_high() -> None:
    where = group("tight")
    write(f"{where}/memory.high", 1 << 20)

    def eater() -> None:
        write(f"{where}/cgroup.procs", os.getpid())
        area = mmap.mmap(-1, 256 << 20)
        for page in range(0, len(area), 4096):
            area[page] = 1

    process("eater", eater)


# -- processes -------------------------------------------------------------------------------------


def exec_behind_thread() -> None:
    """execve() of a thread waits for another one, which cannot be killed."""
    where = mounted(image())
    freeze(where)

    def steps() -> None:
        call_me("execer")
        stuck = threading.Event()

        def touch() -> None:
            call_me("unkillable")
            stuck.set()
            create(f"{where}/new")

        threading.Thread(target=touch, daemon=True).start()
        stuck.wait()
        time.sleep(0.5)
        os.execv("/bin/sleep", ["sleep", "1000"])

    process("execer", steps)


def killed_parent() -> None:
    """A parent waits for a child that sleeps uninterruptibly and was killed."""
    where = mounted(image())
    freeze(where)

    def parent() -> None:
        child = os.fork()
        if not child:
            call_me("killed")
            create(f"{where}/new")
        asleep(child)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    process("killer", parent)
