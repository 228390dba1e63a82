"""The user's side of a task: the system call it is in, its memory, its open files."""

import struct
from collections.abc import Iterable, Iterator

from kwhy import arch as architectures
from kwhy.case.evidence import PAGE, MissingMemory
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.stacks import Stack
from kwhy.diagnose.hang.tasks import Task
from kwhy.errors import FeatureError
from kwhy.kernel.pagetable import PageTables

_MAX_FDS = 65536

#: Which arguments of a call are paths, and which are descriptors of open files.
PATHS = {
    "open": (0,), "openat": (1,), "openat2": (1,), "creat": (0,), "unlink": (0,), "unlinkat": (1,),
    "rmdir": (0,), "mkdir": (0,), "mkdirat": (1,), "rename": (0, 1), "renameat": (1, 3),
    "renameat2": (1, 3), "link": (0, 1), "linkat": (1, 3), "symlink": (0, 1), "symlinkat": (0, 2),
    "stat": (0,), "lstat": (0,), "newfstatat": (1,), "statx": (1,), "truncate": (0,),
    "chmod": (0,), "chown": (0,), "access": (0,), "faccessat": (1,), "execve": (0,),
    "mount": (0, 1), "umount2": (0,), "readlink": (0,), "readlinkat": (1,), "chdir": (0,),
    "statfs": (0,), "utimensat": (1,),
}  # fmt: skip
DESCRIPTORS = {
    "read": (0,), "write": (0,), "pread64": (0,), "pwrite64": (0,), "readv": (0,), "writev": (0,),
    "ioctl": (0,), "fsync": (0,), "fdatasync": (0,), "ftruncate": (0,), "fallocate": (0,),
    "flock": (0,), "fcntl": (0,), "sendfile": (0, 1), "splice": (0, 2), "getdents64": (0,),
    "sendto": (0,), "recvfrom": (0,), "sendmsg": (0,), "recvmsg": (0,), "connect": (0,),
    "accept": (0,), "accept4": (0,), "lseek": (0,), "fstat": (0,), "epoll_wait": (0,),
    "fchmod": (0,), "fchown": (0,), "syncfs": (0,), "copy_file_range": (0, 2),
    "mq_timedsend": (0,), "mq_timedreceive": (0,), "io_uring_enter": (0,), "recvmmsg": (0,),
    "sendmmsg": (0,), "preadv": (0,), "pwritev": (0,), "vmsplice": (0,), "tee": (0, 1),
}  # fmt: skip


class UserMemory:
    """System calls and user memory, through the saved registers and the task's page tables."""

    def __init__(self, memory: Memory) -> None:
        self._m = memory
        self._arch = architectures.of(memory.kernel.arch)
        self._tables = PageTables(memory.kernel, memory.read)

    def arguments(self, stack: Stack) -> tuple[str, tuple[int, ...]] | None:
        """(system call, its six argument registers), None outside of one."""
        arch = self._arch
        entered = any(name.startswith(arch.syscall_entries) for name in stack.names[-3:])
        if stack.regs is None or not entered:
            return None
        try:
            raw = self._m.read(stack.regs, self._m.size("struct pt_regs"))
        except MissingMemory:
            return None
        number = struct.unpack_from("<q", raw, arch.syscall_number)[0]
        name = arch.syscalls.get(number)
        if name is None:
            return None
        return name, tuple(struct.unpack_from("<Q", raw, at)[0] for at in arch.syscall_arguments)

    def read(self, task: Task, address: int, size: int) -> bytes | None:
        """User memory of ``task``; None where it is swapped out, unmapped or not in the dump."""
        out = b""
        try:
            while len(out) < size:
                at = address + len(out)
                physical = self._translate(task, at & -PAGE)
                if physical is None:
                    return None
                piece = min(PAGE - at % PAGE, size - len(out))
                out += self._tables.physical(physical + at % PAGE, piece)
        except (MissingMemory, LookupError, FeatureError):
            return None
        return out

    def words(self, task: Task, address: int, size: int) -> tuple[int, ...] | None:
        """32-bit words of user memory."""
        raw = self.read(task, address, size)
        return None if raw is None else struct.unpack(f"<{size // 4}I", raw)

    def string(self, task: Task, address: int, limit: int = 256) -> str | None:
        """A path or such of at most ``limit`` bytes."""
        raw = b""
        while len(raw) < limit:
            at = address + len(raw)
            piece = self.read(task, at, min(PAGE - at % PAGE, limit - len(raw)))
            if piece is None:
                return None
            raw += piece
            if b"\0" in piece:
                return raw.split(b"\0")[0].decode("utf-8", "replace")
        return raw.decode("utf-8", "replace") + "…"

    def _translate(self, task: Task, page: int) -> int | None:
        """Physical address of a user page."""
        if not task.mm or page >> 56:
            return None
        table = self._m.value("struct mm_struct", task.mm, "pgd") - self._tables.base
        mapped = self._tables.walk(table, page)
        return mapped.physical if mapped else None


class Files:
    """Open file tables."""

    def __init__(self, memory: Memory) -> None:
        self._m = memory
        self._tables: dict[int, tuple[int, ...]] = {}

    def table(self, files: int) -> tuple[int, ...]:
        """``struct file`` by descriptor, 0 where none is open."""
        if files not in self._tables:
            self._tables[files] = self._read(files)
        return self._tables[files]

    def prefetch(self, tables: Iterable[int]) -> None:
        """Fetch many tables in a few exchanges with the target."""
        m, kind = self._m, "struct fdtable"
        tables = list(tables)
        m.evidence.prefetch((table, m.size("struct files_struct")) for table in tables)
        where = [p for t in tables if (p := self._try("struct files_struct", t, "fdt"))]
        m.evidence.prefetch((fdt, m.size(kind)) for fdt in where)
        m.evidence.prefetch(
            (self._try(kind, fdt, "fd"), 8 * min(self._try(kind, fdt, "max_fds"), _MAX_FDS))
            for fdt in where
        )

    def _try(self, type: str, address: int, path: str) -> int:
        try:
            return self._m.value(type, address, path)
        except MissingMemory:
            return 0

    def _read(self, files: int) -> tuple[int, ...]:
        m = self._m
        try:
            fdt = m.value("struct files_struct", files, "fdt")
            count = min(m.value("struct fdtable", fdt, "max_fds"), _MAX_FDS)
            raw = m.read(m.value("struct fdtable", fdt, "fd"), 8 * count)
        except MissingMemory:
            return ()
        return struct.unpack(f"<{count}Q", raw)

    def file(self, task: Task, descriptor: int) -> int | None:
        """The ``struct file`` behind a descriptor of ``task``."""
        table = self.table(task.files) if task.files else ()
        return table[descriptor] or None if 0 <= descriptor < len(table) else None

    def open_files(self, task: Task) -> Iterator[tuple[int, int]]:
        """(descriptor, ``struct file``) of all that ``task`` has open."""
        for descriptor, file in enumerate(self.table(task.files) if task.files else ()):
            if file:
                yield descriptor, file
