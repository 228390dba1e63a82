"""Who has what open: from the private data of an open file to the processes behind it.

A pipe, a socket, the device of a FUSE daemon or of a scanner are known to the kernel by what
``file->private_data`` points to. Tables of open files are read all at once, when first asked for.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.memory import MASK, Memory
from kwhy.diagnose.hang.tasks import Task, Tasks
from kwhy.diagnose.hang.user import Files

READABLE, WRITABLE = 1, 2  # FMODE_READ, FMODE_WRITE of include/linux/fs.h


@dataclass(frozen=True, slots=True)
class Open:
    """An open file: ``tasks`` may use it, ``slots`` descriptors name it.

    ``whole``: nobody else can have it, because there are no more references than descriptors; a
    file that is on its way in a message or that the kernel itself keeps has more.
    """

    file: int
    mode: int
    tasks: tuple[int, ...]
    slots: int
    whole: bool


class Ends:
    """Open files by their private data."""

    def __init__(self, memory: Memory, tasks: Tasks) -> None:
        self._m, self._tasks = memory, tasks
        self._files = Files(memory)
        self._slots: dict[int, list[int]] | None = None
        self._private: dict[int, list[int]] = {}
        self._users: dict[int, tuple[int, ...]] = {}
        self._known: dict[int, Open] = {}
        self._together: dict[tuple[int, ...], tuple[int, ...]] = {}

    def of(self, private: int) -> tuple[Open, ...]:
        """The open files with that private data."""
        self._read()
        return tuple(self.file(file) for file in self._private.get(private, ()))

    def file(self, file: int) -> Open:
        """One open file, by the address of its ``struct file``."""
        if file not in self._known:
            self._known[file] = self._file(file)
        return self._known[file]

    def users(self, opens: tuple[Open, ...]) -> tuple[int, ...]:
        """The tasks that may use one of ``opens``; of the same files the same object."""
        if len(opens) == 1:
            return opens[0].tasks
        files = tuple(one.file for one in opens)
        if files not in self._together:
            self._together[files] = tuple(dict.fromkeys(t for one in opens for t in one.tasks))
        return self._together[files]

    def _file(self, file: int) -> Open:
        tables = self._tables().get(file, [])
        once = list(dict.fromkeys(tables))
        tasks = tuple(t for table in once for t in self._users[table])
        if len(once) == 1:
            tasks = self._users[once[0]]
        mode = self._m.value("struct file", file, "f_mode")
        whole = bool(tables) and self._references(file) == len(tables)
        return Open(file, mode, tasks, len(tables), whole)

    def descriptor(self, task: Task, number: int) -> int:
        """The ``struct file`` behind a descriptor of ``task``, 0 for none."""
        return self._files.file(task, number) or 0

    def private(self) -> Iterable[int]:
        """The private data of everything that is open."""
        self._read()
        return self._private

    def files(self) -> Container[int]:
        """The ``struct file`` of everything that is open."""
        return self._tables()

    def _references(self, file: int) -> int:
        m = self._m
        if m.has("struct file", "f_ref.refcnt"):  # counts from 0 on: include/linux/file_ref.h
            return m.value("struct file", file, "f_ref.refcnt") + 1 & MASK
        return m.value("struct file", file, "f_count")

    def _read(self) -> None:
        if self._private:
            return
        at = self._m.offset("struct file", "private_data")
        slots = self._tables()
        self._m.evidence.prefetch((file, self._m.size("struct file")) for file in slots)
        for file in slots:
            try:
                self._private.setdefault(self._m.u64(file + at), []).append(file)
            except MissingMemory:
                continue

    def _tables(self) -> dict[int, list[int]]:
        """For each open file the tables that name it, once for every descriptor."""
        if self._slots is None:
            users: dict[int, list[int]] = {}
            for task in self._tasks.by_address.values():
                if task.files:
                    users.setdefault(task.files, []).append(task.address)
            self._users = {files: tuple(tasks) for files, tasks in users.items()}
            self._files.prefetch(users)
            self._slots = {}
            for table in users:
                for file in self._files.table(table):
                    if file:
                        self._slots.setdefault(file, []).append(table)
        return self._slots
