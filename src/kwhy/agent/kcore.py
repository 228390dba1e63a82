"""Kernel memory from /proc/kcore, an ELF core file of the kernel's address space."""

import os
import struct
import threading
from typing import List, Optional, Sequence, Tuple

from .errors import AgentError

PATH = "/proc/kcore"
MAX_CALL = 64 << 20  # bytes of one read_memory request
MAX_HEADERS = 4096

Segment = Tuple[int, int, int]  # address, size, file offset


class Kcore(object):
    """An open /proc/kcore. Raises AgentError(feature kcore) when it cannot be had."""

    def __init__(self, path: str = PATH) -> None:
        self._lock = threading.Lock()
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise AgentError(
                "feature",
                "cannot read %s: %s; it takes root, CONFIG_PROC_KCORE and no lockdown"
                % (path, error.strerror),
                "kcore",
            )
        self.segments: List[Segment] = []
        self.note = b""
        self.parse()

    def parse(self) -> None:
        """Read the program headers (again: they change with memory hotplug)."""
        try:
            head = os.pread(self.fd, 64, 0)
            if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
                raise AgentError("feature", "/proc/kcore is not a 64-bit ELF file", "kcore")
            table, size, count = _header(head)
            raw = os.pread(self.fd, size * count, table)
        except OSError as error:
            raise AgentError(
                "feature", "/proc/kcore cannot be read: %s (lockdown?)" % error.strerror, "kcore"
            )
        segments = []
        for i in range(min(count, len(raw) // size)):
            kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", raw, i * size)
            if kind == 1:  # PT_LOAD
                segments.append((address, length, offset))
            elif kind == 4:  # PT_NOTE
                self.note = os.pread(self.fd, min(length, 1 << 20), offset)
        # Small segments first: the kernel text lies within none other, vmalloc space is huge.
        self.segments = sorted(segments, key=lambda segment: segment[1])

    def read(self, ranges: Sequence[Tuple[int, int]]) -> Tuple[List[Optional[int]], bytearray]:
        """Memory at (address, size) ranges: how much each gave, and all of it joined.

        Fewer bytes than asked for at the end of what is mapped; None where nothing is. It is read
        in one sweep into memory that we have already: on the way to the next page of an allocator
        we do not take pages from it.
        """
        if any(self._locate(address) is None for address, _ in ranges):
            with self._lock:
                self.parse()
        room = bytearray(b".") * sum(size for _, size in ranges)
        sizes: List[Optional[int]] = []
        at = 0
        with self._lock, memoryview(room) as view:
            for address, size in ranges:
                found = self._locate(address)
                got = 0 if found is None else self._fill(view[at : at + size], address, found)
                sizes.append(got or None)
                at += got
        del room[at:]
        return sizes, room

    def _fill(self, view: memoryview, address: int, segment: Segment) -> int:
        start, length, offset = segment
        wanted = min(len(view), start + length - address)
        os.lseek(self.fd, offset + address - start, os.SEEK_SET)
        done = 0
        while done < wanted:
            try:
                got = os.readv(self.fd, [view[done:wanted]])
            except OSError:
                break
            if not got:
                break
            done += got
        return done

    def _locate(self, address: int) -> Optional[Segment]:
        for segment in self.segments:
            if segment[0] <= address < segment[0] + segment[1]:
                return segment
        return None


def _header(head: bytes) -> Tuple[int, int, int]:
    table = struct.unpack_from("<Q", head, 32)[0]
    size, count = struct.unpack_from("<HH", head, 54)
    if size < 56 or count > MAX_HEADERS:
        raise AgentError("feature", "/proc/kcore has a strange ELF header", "kcore")
    return table, size, count
