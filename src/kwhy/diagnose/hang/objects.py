"""Human names of locked objects: the inode's path, the mount, the process, the variable.

A guess that an address lies in some structure is kept only if that structure proves itself: an
inode that hangs in its super block's list, a super block whose root points back to it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.look import Look
from kwhy.diagnose.hang.mapped import mappings
from kwhy.diagnose.hang.stacks import Stack
from kwhy.diagnose.hang.tasks import Task
from kwhy.diagnose.hang.user import DESCRIPTORS, PATHS, Files

_NAMED = 4  # files of a set that are named
_MAX_DEPTH = 64  # names of a path
#: Kinds that are named by the descriptor that the system call works on.
DESCRIBED = frozenset({
    "pipe-read", "pipe-write", "wait-queue", "socket", "fuse", "io", "eventfd", "tty", "signal",
    "timer", "inotify", "message", "io_uring",
})  # fmt: skip
#: Locks of structures that hold an inode: the structure, its inode, the locks.
_INODES = (
    ("struct ext4_inode_info", "vfs_inode", ("i_data_sem", "xattr_sem")),
    ("struct xfs_inode", "i_vnode", ("i_lock",)),
    ("struct btrfs_inode", "vfs_inode", ("log_mutex",)),
    ("struct fuse_inode", "inode", ("mutex",)),
)
_PIPEFS, _SOCKFS = "pipefs", "sockfs"


@dataclass(frozen=True, slots=True)
class Named:
    """``name`` as the source spells the lock, ``object`` what a person calls the thing."""

    name: str = ""
    object: str = ""


class Objects:
    """Names what claims hang on; each address is looked at once."""

    def __init__(self, look: Look) -> None:
        self._m, self._tasks, self._user = look.memory, look.tasks, look.user
        self._ends = look.ends
        self._maps = mappings(look)
        self._files = Files(look.memory)
        self._shared: dict[str, dict[int, list[Task]]] = {}
        self._known: dict[tuple[str, int], Named] = {}
        self._inodes: dict[int, bool] = {}

    def named(self, claim: Claim, stack: Stack) -> Named:
        """The lock's name and its object; empty where nothing can be said for certain."""
        if claim.kind == "futex":
            return Named("futex", self._futex(claim, stack.task))
        if claim.object:
            return Named(self._variable(claim.address), claim.object)
        key = (claim.kind, claim.address)
        if not claim.address:
            return self._tried(claim, stack)
        if key not in self._known or not self._known[key].object:
            self._known[key] = self._tried(claim, stack)
        return self._known[key]

    def _tried(self, claim: Claim, stack: Stack) -> Named:
        try:
            return self._name(claim, stack)
        except (MissingMemory, LookupError):
            return Named()

    def _name(self, claim: Claim, stack: Stack) -> Named:
        extra = dict(claim.extra)
        if "descriptor" in extra:
            return Named("", self._several(claim, stack.task))
        if "super_block" in extra:
            return Named("", self._super_block(extra["super_block"], stack.task))
        if "file" in extra:
            return Named("file_lock", self.file_path(extra["file"], stack.task))
        if claim.kind == "folio":
            return self._folio(claim, stack)
        if claim.kind in ("fanotify", "fifo-open"):
            return Named("", self._path_argument(stack))
        if claim.kind in DESCRIBED:
            path = self.descriptor(stack)
            if path:
                return Named(self._variable(claim.address), path)
        if not claim.address:
            return Named()
        return self._lock(claim, stack)

    def _futex(self, claim: Claim, task: Task) -> str:
        """ "pthread mutex orders of shop (4723)"; its address where it is no variable's."""
        address = dict(claim.extra).get("lock", claim.address)
        place = self._maps.place(task, address) if address else None
        named = place.program.variable(place.linked) if place and place.program else None
        name = f"{address:#x}"
        if named is not None:
            name = f"{named[0]}+{named[1]:#x}" if named[1] else named[0]
        leader = self._tasks.by_tid.get(task.tgid, task)
        return f"{claim.object or 'futex'} {name} of {leader.comm} ({leader.tid})"

    def _several(self, claim: Claim, task: Task) -> str:
        """ "3 files: 5 pipe:[7], 6 /dev/null, ..." of a set of descriptors."""
        numbers = [number for word, number in claim.extra if word == "descriptor"]
        named = [f"{n} {self.descriptor_path(task, n)}".strip() for n in numbers[:_NAMED]]
        more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
        files = "1 file" if len(numbers) == 1 else f"{len(numbers)} files"
        return f"{files}: {', '.join(named)}{more}"

    def _path_argument(self, stack: Stack) -> str:
        """The first path that the task's system call names, "" if none."""
        call = self._user.arguments(stack)
        if call is None or call[0] not in PATHS:
            return ""
        return self._user.string(stack.task, call[1][PATHS[call[0]][0]]) or ""

    def _folio(self, claim: Claim, stack: Stack) -> Named:
        m = self._m
        mapping = m.value("struct page", claim.address, "mapping")
        if not mapping or mapping & 3:
            return Named("page", "anonymous memory" if mapping & 1 else "")
        inode = m.value("struct address_space", mapping, "host")
        index = m.value(
            "struct page", claim.address, m.first("struct page", "index", "__folio_index")
        )
        path = self.inode_path(inode, stack.task) if self._is_inode(inode) else ""
        return Named("folio", f"{path} at offset {index * 4096:#x}" if path else "")

    # -- locks inside of structures ----------------------------------------------------------------

    def _lock(self, claim: Claim, stack: Stack) -> Named:
        variable = self._variable(claim.address)
        if variable:
            return Named(variable)
        for container, path, proves, describe in self._containers():
            try:
                base = claim.address - self._m.offset(container, path)
                if proves(base):
                    short = container.removeprefix("struct ")
                    return Named(f"{short}->{path}", describe(base, stack.task))
            except (MissingMemory, LookupError):
                continue
        return Named()

    def _variable(self, address: int) -> str:
        """A lock that is a variable, or lies in one: "rtnl_mutex", "kwhy_hang: mutexes+0x20"."""
        symbol = self._m.kernel.symbols.at(address) if address else None
        if symbol is None or symbol.code or address >= symbol.end:
            return ""
        offset = address - symbol.address
        text = f"{symbol.name}+{offset:#x}" if offset else symbol.name
        return f"{text} [{symbol.module}]" if symbol.module else text

    def _containers(
        self,
    ) -> list[tuple[str, str, Callable[[int], bool], Callable[[int, Task], str]]]:
        inode = (self._is_inode, self.inode_path)
        block = (self._is_super_block, self._super_block)
        signal = (self._is_signal, self._signal)
        return [
            ("struct inode", "i_rwsem", *inode),
            ("struct inode", "i_data.invalidate_lock", *inode),
            ("struct inode", "i_data.i_mmap_rwsem", *inode),
            ("struct super_block", "s_umount", *block),
            ("struct super_block", "s_vfs_rename_mutex", *block),
            ("struct super_block", "s_sync_lock", *block),
            *(("struct super_block", f"s_writers.rw_sem[{i}]", *block) for i in range(3)),
            ("struct mm_struct", "mmap_lock", self._is_mm, self._mm),
            ("struct signal_struct", "cred_guard_mutex", *signal),
            ("struct signal_struct", "exec_update_lock", *signal),
            ("struct file", "f_pos_lock", self._is_file, self.file_path),
            ("struct gendisk", "open_mutex", self._is_disk, self._disk),
            ("struct tty_struct", "atomic_write_lock", self._is_terminal, self._terminal),
            ("struct tty_struct", "termios_rwsem", self._is_terminal, self._terminal),
            ("struct pipe_inode_info", "mutex", self._is_private, self._private),
            *self._inside_inodes(),
        ]

    def _is_inode(self, inode: int) -> bool:
        if inode not in self._inodes:
            m = self._m
            try:
                block = m.value("struct inode", inode, "i_sb")
                linked = m.linked(inode + m.offset("struct inode", "i_sb_list"))
                self._inodes[inode] = linked and self._is_super_block(block)
            except MissingMemory:
                self._inodes[inode] = False
        return self._inodes[inode]

    def _inside_inodes(
        self,
    ) -> Iterator[tuple[str, str, Callable[[int], bool], Callable[[int, Task], str]]]:
        """Locks that file systems have beside their inodes."""
        for kind, inner, paths in _INODES:
            if self._m.has(kind, inner):
                at = self._m.offset(kind, inner)
                for path in paths:
                    yield kind, path, partial(self._holds_inode, at), partial(self._held_inode, at)

    def _holds_inode(self, at: int, base: int) -> bool:
        return self._is_inode(base + at)

    def _held_inode(self, at: int, base: int, near: Task) -> str:
        return self.inode_path(base + at, near)

    def _is_disk(self, disk: int) -> bool:
        part = self._m.value("struct gendisk", disk, "part0")
        return self._m.value("struct block_device", part, "bd_disk") == disk

    def _disk(self, disk: int, _near: Task) -> str:
        return f"block device {self._m.text('struct gendisk', disk, 'disk_name')}"

    def _is_terminal(self, tty: int) -> bool:
        ldisc = self._m.value("struct tty_struct", tty, "ldisc")
        return bool(ldisc) and self._m.value("struct tty_ldisc", ldisc, "tty") == tty

    def _terminal(self, tty: int, _near: Task) -> str:
        return f"terminal {self._m.text('struct tty_struct', tty, 'name')}"

    def _is_private(self, address: int) -> bool:
        return bool(self._ends.of(address))

    def _private(self, address: int, near: Task) -> str:
        return self.file_path(self._ends.of(address)[0].file, near)

    def _is_super_block(self, block: int) -> bool:
        m = self._m
        root = m.value("struct super_block", block, "s_root")
        return bool(root) and m.value("struct dentry", root, "d_sb") == block

    def _is_mm(self, mm: int) -> bool:
        return mm in self._users("mm")

    def _mm(self, mm: int, _near: Task) -> str:
        users = [task for task in self._users("mm")[mm] if task.tid == task.tgid]
        return f"memory map of {users[0].comm} ({users[0].tid})" if users else "a memory map"

    def _is_signal(self, signal: int) -> bool:
        return signal in self._users("signal")

    def _signal(self, signal: int, _near: Task) -> str:
        users = [task for task in self._users("signal")[signal] if task.tid == task.tgid]
        return f"process {users[0].tid} ({users[0].comm})" if users else ""

    def _users(self, field: str) -> dict[int, list[Task]]:
        """Tasks by what a pointer of theirs points to."""
        if field not in self._shared:
            found: dict[int, list[Task]] = {}
            for task in self._tasks.by_address.values():
                shared = self._m.value("struct task_struct", task.address, field)
                found.setdefault(shared, []).append(task)
            self._shared[field] = found
        return self._shared[field]

    def _is_file(self, file: int) -> bool:
        return file in self._ends.files()

    def _super_block(self, block: int, near: Task) -> str:
        kind = self.file_system(block)
        root = self._m.value("struct super_block", block, "s_root")
        path = self._path(root, self._mount_of(block, near))
        device = self._m.text("struct super_block", block, "s_id")
        return f"file system {path or device} ({kind})"

    # -- paths -------------------------------------------------------------------------------------

    def file_system(self, block: int) -> str:
        """The type of a mounted file system: "ext4"."""
        kind = self._m.value("struct super_block", block, "s_type")
        return self._m.string(self._m.value("struct file_system_type", kind, "name"), 32)

    def descriptor(self, stack: Stack) -> str:
        """The path behind the descriptor that the task's system call works on, "" if none."""
        call = self._user.arguments(stack)
        if call is None or call[0] not in DESCRIPTORS:
            return ""
        file = self._files.file(stack.task, call[1][DESCRIPTORS[call[0]][0]] & 0xFFFFFFFF)
        return self.file_path(file, stack.task) if file else ""

    def descriptor_path(self, task: Task, descriptor: int) -> str:
        """The path of an open file of ``task``; "" for none."""
        file = self._files.file(task, descriptor)
        try:
            return self.file_path(file, task) if file else ""
        except (MissingMemory, LookupError):
            return ""

    def file_path(self, file: int, _near: Task) -> str:
        """The path of a ``struct file``, or "pipe:[5]" and the like."""
        m = self._m
        dentry = m.value("struct file", file, "f_path.dentry")
        inode = m.value("struct file", file, "f_inode")
        kind = self.file_system(m.value("struct inode", inode, "i_sb"))
        if kind in (_PIPEFS, _SOCKFS):
            word = "pipe" if kind == _PIPEFS else "socket"
            return f"{word}:[{m.value('struct inode', inode, 'i_ino')}]"
        if kind == "mqueue":
            return f"message queue /{self._dentry_name(dentry)}"
        if kind == "anon_inodefs":
            return f"anon_inode:{self._dentry_name(dentry)}"
        return self._path(dentry, m.value("struct file", file, "f_path.mnt"))

    def inode_path(self, inode: int, near: Task) -> str:
        """The first name of an inode as ``near`` would see it; the number where it has none."""
        m = self._m
        block = m.value("struct inode", inode, "i_sb")
        node = m.value("struct inode", inode, "i_dentry.first")
        number = f"inode {m.value('struct inode', inode, 'i_ino')}"
        if not node:
            return f"{number} of {self._super_block(block, near)}"
        alias = m.first("struct dentry", "d_u.d_alias", "d_alias")
        dentry = node - m.offset("struct dentry", alias)
        if m.value("struct dentry", dentry, "d_inode") != inode:
            return f"{number} of {self._super_block(block, near)}"
        return self._path(dentry, self._mount_of(block, near))

    def _mount_of(self, block: int, near: Task) -> int:
        """A mount of the file system that ``near`` uses: its directories, its open files."""
        m = self._m
        fs = m.value("struct task_struct", near.address, "fs")
        mounts = (
            [m.value("struct fs_struct", fs, f"{d}.mnt") for d in ("pwd", "root")] if fs else []
        )
        for _descriptor, file in self._files.open_files(near):
            mounts.append(m.value("struct file", file, "f_path.mnt"))
        for mount in mounts:
            if mount and m.value("struct vfsmount", mount, "mnt_sb") == block:
                return mount
        return self._any_mount(block)

    def _any_mount(self, block: int) -> int:
        """The first mount of a file system, 0 for none.

        Newer kernels' ``s_mounts`` points to it; before that it was the head of a list.
        """
        m = self._m
        head = block + m.offset("struct super_block", "s_mounts")
        first = m.u64(head)
        if first in (0, head):
            return 0
        if m.has("struct mount", "mnt_instance"):
            first -= m.offset("struct mount", "mnt_instance")
        mount = first + m.offset("struct mount", "mnt")
        return mount if m.value("struct vfsmount", mount, "mnt_sb") == block else 0

    def _path(self, dentry: int, vfsmount: int) -> str:
        """Names up to the root, mounts included when ``vfsmount`` is known."""
        m = self._m
        names: list[str] = []
        inside = m.offset("struct mount", "mnt")
        for _depth in range(_MAX_DEPTH):
            at_root = vfsmount and m.value("struct vfsmount", vfsmount, "mnt_root") == dentry
            parent = m.value("struct dentry", dentry, "d_parent")
            if at_root or (parent == dentry and vfsmount):
                mount = vfsmount - inside
                above = m.value("struct mount", mount, "mnt_parent")
                if above == mount:
                    break
                dentry = m.value("struct mount", mount, "mnt_mountpoint")
                vfsmount = above + inside
                continue
            if parent == dentry:
                break
            names.append(self._dentry_name(dentry))
            dentry = parent
        return "/" + "/".join(reversed(names))

    def _dentry_name(self, dentry: int) -> str:
        return self._m.string(self._m.value("struct dentry", dentry, "d_name.name"), 256)
