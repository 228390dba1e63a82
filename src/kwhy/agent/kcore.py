"""Kernel memory from /proc/kcore, an ELF core file of the kernel's address space."""

import os
import struct
import threading
from typing import List, Optional, Tuple

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

    def read(self, address: int, size: int) -> Optional[bytes]:
        """Up to ``size`` bytes; fewer at the end of what is mapped; None when nothing is there."""
        found = self._locate(address)
        if found is None:
            with self._lock:
                self.parse()
            found = self._locate(address)
        if found is None:
            return None
        start, length, offset = found
        wanted = min(size, start + length - address)
        pieces = []
        while wanted > 0:
            try:
                piece = os.pread(self.fd, wanted, offset + address - start)
            except OSError:
                break
            if not piece:
                break
            pieces.append(piece)
            address += len(piece)
            wanted -= len(piece)
        return b"".join(pieces) or None

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
