"""Raw ring-buffer pages out of a trace buffer, CPU by CPU, and what was lost on the way."""

import os
import re
from typing import Dict, List, Optional, Tuple

from . import tracefs
from .server import Request

BATCH = 64  # pages of one message


class PageReader(object):
    """Reads ``per_cpu/cpuN/trace_pipe_raw`` of one buffer without blocking."""

    def __init__(self, buffer: str) -> None:
        self.buffer = buffer
        self.page_size = page_size(buffer)
        self.total = 0  # pages read
        self.fds: Dict[int, int] = {}
        for cpu in cpus(buffer):
            path = "%s/per_cpu/cpu%d/trace_pipe_raw" % (buffer, cpu)
            self.fds[cpu] = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def close(self) -> None:
        """Close all; a trace instance cannot be removed before."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}

    def sweep(self, request: Request, wait: bool) -> int:
        """Send what there is, at most a few batches per CPU; returns the number of pages.

        Without ``wait`` it stops when the desk's credit runs out: the kernel's buffer is then the
        only thing that fills.
        """
        count = 0
        for cpu, fd in self.fds.items():
            for _ in range(16):
                if not wait and request.credit() < 2 * BATCH * self.page_size:
                    return count
                pages = self._batch(fd)
                if pages:
                    header = {"cpu": cpu, "count": len(pages), "size": self.page_size}
                    request.send("pages", header, b"".join(pages))
                    count += len(pages)
                if len(pages) < BATCH:
                    break
        self.total += count
        return count

    def _batch(self, fd: int) -> List[bytes]:
        pages: List[bytes] = []
        size = self.page_size
        while len(pages) < BATCH:
            try:
                page = os.read(fd, size)
            except BlockingIOError:
                break
            if not page:
                break
            pages.append(page if len(page) == size else page.ljust(size, b"\0"))
        return pages


def page_size(buffer: str) -> int:
    """Bytes of one sub-buffer: a memory page, or what ``buffer_subbuf_size_kb`` (6.8) says."""
    text = tracefs.read_or(buffer + "/buffer_subbuf_size_kb")
    if text.isdigit() and int(text) > 0:
        return int(text) * 1024
    return os.sysconf("SC_PAGE_SIZE")


def cpus(buffer: str) -> List[int]:
    """CPUs that have a buffer."""
    found = [re.match(r"cpu(\d+)$", name) for name in os.listdir(buffer + "/per_cpu")]
    return sorted(int(match.group(1)) for match in found if match)


def lost(buffer: str) -> Dict[str, Dict[str, int]]:
    """Per CPU what ``stats`` counts: overrun (oldest overwritten), dropped, commit_overrun, read.

    Source: tracing_stats_read() in kernel/trace/trace.c.
    """
    result = {}
    names = {
        "overrun": "overrun",
        "commit overrun": "commit_overrun",
        "dropped events": "dropped",
        "read events": "read",
        "entries": "entries",
    }
    for cpu in cpus(buffer):
        counts = {}
        text = tracefs.read_or("%s/per_cpu/cpu%d/stats" % (buffer, cpu))
        for line in text.splitlines():
            key, _, value = line.partition(":")
            if key in names and value.strip().isdigit():
                counts[names[key]] = int(value)
        result[str(cpu)] = counts
    return result


def lost_events(counts: Dict[str, Dict[str, int]]) -> Dict[str, int]:
    """Events that no page holds, per CPU; only CPUs that lost any."""
    result = {}
    for cpu, found in counts.items():
        number = found.get("overrun", 0) + found.get("dropped", 0) + found.get("commit_overrun", 0)
        if number:
            result[cpu] = number
    return result


def buffer_kb(wanted: Optional[int], count: int) -> Tuple[int, int]:
    """(KiB per CPU, KiB in all) for a wish in KiB over all CPUs; never over 1/8 of free memory."""
    available = 1 << 20
    for line in tracefs.read_or("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1])
    total = min(wanted or 16384, available // 8)
    floor = 8 if wanted else 512
    each = max(total // max(count, 1), min(floor, available // (8 * max(count, 1))), 8)
    return each, each * count
