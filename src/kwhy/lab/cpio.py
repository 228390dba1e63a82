"""Writing initramfs archives: the ``newc`` format (Documentation/driver-api/early-userspace/
buffer-format.rst). Several of them, one after the other, are one initramfs."""

import os
import re
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_TRAILER = "TRAILER!!!"
_MERGED = re.compile(r"^(?=(bin|sbin|lib|lib64)(/|$))")


class CpioWriter:
    """Writes entries to a binary stream; ``close`` ends the archive, not the stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._inode = 0
        self._made: set[str] = set()
        self._written = 0

    def directory(self, name: str, mode: int = 0o755) -> None:
        """A directory and those above it; one that is there already stays."""
        parent = name.rpartition("/")[0]
        if parent and parent not in self._made:
            self.directory(parent)
        if name not in self._made:
            self._made.add(name)
            self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, data: bytes, mode: int = 0o644, mtime: int = 0) -> None:
        """A regular file; ``mtime`` in seconds since 1970."""
        self._parent(name)
        self._entry(name, stat.S_IFREG | mode, data, mtime=mtime)

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._parent(name)
        self._entry(name, stat.S_IFLNK | 0o777, os.fsencode(target))

    def device(self, name: str, mode: int, major: int, minor: int) -> None:
        """A device node; ``mode`` with its type (S_IFCHR, S_IFBLK)."""
        self._parent(name)
        self._entry(name, mode, b"", (major, minor))

    def tree(self, root: Path, prefix: str) -> None:
        """Everything below the directory ``root``, as ``prefix/...``; links stay links.

        What an old package has in /bin, /sbin or /lib goes to /usr: those three are links, and a
        directory in an archive would replace the link that an earlier archive made.
        """
        for path in sorted(root.rglob("*")):
            name = _MERGED.sub("usr/", f"{prefix}/{path.relative_to(root)}".strip("/"), count=1)
            facts = path.lstat()
            mode = facts.st_mode
            if stat.S_ISLNK(mode):
                self.link(name, os.fspath(path.readlink()))
            elif stat.S_ISDIR(mode):
                self.directory(name, stat.S_IMODE(mode))
            elif stat.S_ISREG(mode):
                self.file(name, path.read_bytes(), stat.S_IMODE(mode), int(facts.st_mtime))

    def tar(self, archive: tarfile.TarFile, keep: Callable[[str], bool]) -> None:
        """The members of a tar stream whose name ``keep`` accepts, with their owners.

        A hard link becomes a link to its target if that was kept.
        """
        for member in archive:
            name = member.name.removeprefix("./").strip("/")
            if name in ("", ".") or not keep(name):
                continue
            owner = (member.uid, member.gid)
            if member.isdir():
                self._made.add(name)
                self._entry(name, stat.S_IFDIR | member.mode, b"", owner=owner)
            elif member.issym():
                self._entry(name, stat.S_IFLNK | 0o777, os.fsencode(member.linkname), owner=owner)
            elif member.islnk():
                up = "../" * name.count("/")
                self.link(name, up + member.linkname.removeprefix("./"))
            elif member.isreg():
                file = archive.extractfile(member)
                data = file.read() if file else b""
                # Python checks a .pyc against the time of its source, so times are kept.
                mode, mtime = stat.S_IFREG | member.mode, int(member.mtime)
                self._entry(name, mode, data, owner=owner, mtime=mtime)

    def close(self) -> None:
        """End the archive."""
        self._entry(_TRAILER, 0, b"")
        self._pad(512)

    def _parent(self, name: str) -> None:
        parent = name.rpartition("/")[0]
        if parent:
            self.directory(parent)

    def _entry(
        self,
        name: str,
        mode: int,
        data: bytes,
        device: tuple[int, int] = (0, 0),
        owner: tuple[int, int] = (0, 0),
        mtime: int = 0,
    ) -> None:
        self._inode += 1
        raw = os.fsencode(name) + b"\0"
        fields = [self._inode, mode, *owner, 1, mtime, len(data), 0, 0, *device, len(raw), 0]
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._write(header + raw)
        self._pad(4)
        self._write(data)
        self._pad(4)

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._written += len(data)

    def _pad(self, boundary: int) -> None:
        self._write(b"\0" * (-self._written % boundary))
