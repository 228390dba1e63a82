"""Samples and breakpoints of a processor: perf_event_open(2) by ctypes; no counters needed.

Events belong to a processor, not to the thread that is asked about, and the thread's records are
picked out: the first event of a thread makes the kernel wait for an RCU grace period
(account_event() in kernel/events/core.c), which a thread that spins unpreemptibly never lets end.

Source: include/uapi/linux/perf_event.h, include/uapi/linux/hw_breakpoint.h.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
from typing import Any, Dict

from .errors import AgentError

SYSCALL = {"x86_64": 298, "aarch64": 241}
ATTR_SIZE = 112  # PERF_ATTR_SIZE_VER5
RING_PAGES = 64
ENABLE, DISABLE = 0x2400, 0x2401  # PERF_EVENT_IOC_*

SOFTWARE, CPU_CLOCK = 1, 0
BREAKPOINT, EXECUTE = 5, 4
IP, TID, TIME, CALLCHAIN, CPU, REGS_INTR = 1, 2, 4, 32, 128, 1 << 18

#: Bits of the flags word.
DISABLED, EXCLUDE_USER, EXCLUDE_HV, EXCLUDE_IDLE = 1, 1 << 4, 1 << 6, 1 << 7
EXCLUDE_CALLCHAIN_USER = 1 << 22

LOST, SAMPLE = 2, 9  # PERF_RECORD_*

WHY = {
    errno.EACCES: "it takes root or CAP_PERFMON (kernel.perf_event_paranoid, lockdown)",
    errno.EPERM: "it takes root or CAP_PERFMON (kernel.perf_event_paranoid, lockdown)",
    errno.ENOSYS: "the kernel has no perf events (CONFIG_PERF_EVENTS)",
    errno.ENOSPC: "all debug registers are in use (another debugger or perf?)",
    errno.EINVAL: "the kernel refuses it there",
    errno.ENOENT: "the kernel has no such event",
    errno.ENODEV: "the processor has no such event",
    errno.EOPNOTSUPP: "the processor does not support it",
}

_libc = ctypes.CDLL(None, use_errno=True)


def attributes(event: Dict[str, Any]) -> bytes:
    """A ``struct perf_event_attr`` for ``event``.

    ``{"kind": "clock", "period": ns}`` samples by time, ``{"kind": "breakpoint", "address": int}``
    at every execution of an instruction. ``registers``: the mask of those to keep with each sample
    (PERF_REG_*, 0: none), ``chain``: the kernel's call chain too.
    """
    registers = int(event.get("registers") or 0)
    sample = IP | TID | TIME | CPU
    if event.get("chain"):
        sample |= CALLCHAIN
    if registers:
        sample |= REGS_INTR
    flags = DISABLED | EXCLUDE_HV | EXCLUDE_IDLE | EXCLUDE_CALLCHAIN_USER
    if event["kind"] == "clock":
        kind, config, period, bp_type, address, length = (
            SOFTWARE, CPU_CLOCK, int(event["period"]), 0, 0, 0,
        )  # fmt: skip
    elif event["kind"] == "breakpoint":
        kind, config, period, bp_type = BREAKPOINT, 0, 1, EXECUTE
        address, length = int(event["address"]), ctypes.sizeof(ctypes.c_long)
        flags |= EXCLUDE_USER
    else:
        raise AgentError("usage", "no event of kind %r" % event["kind"])
    return struct.pack(
        "<IIQQQQQIIQQQQIiQIHH",
        kind, ATTR_SIZE, config, period, sample, 0, flags,
        1, bp_type, address, length, 0, 0, 0, 0, registers, 0, 64, 0,
    )  # fmt: skip


class Event(object):
    """One open perf event of a processor, disabled; raises OSError as the kernel refuses it."""

    def __init__(self, cpu: int, event: Dict[str, Any]) -> None:
        attr = ctypes.create_string_buffer(attributes(event), ATTR_SIZE)
        number = SYSCALL.get(os.uname().machine)
        if number is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        everybody, no_group, close_on_exec = -1, -1, 8
        self.fd = _libc.syscall(
            ctypes.c_long(number), attr, ctypes.c_long(everybody), ctypes.c_long(cpu),
            ctypes.c_long(no_group), ctypes.c_ulong(close_on_exec),
        )  # fmt: skip
        if self.fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        try:
            self.ring = mmap.mmap(self.fd, (1 + RING_PAGES) * mmap.PAGESIZE)
        except (OSError, ValueError) as error:
            os.close(self.fd)
            raise OSError(errno.ENOMEM, "no memory for its samples: %s" % error)

    def switch(self, on: bool) -> None:
        """Start or stop it."""
        fcntl.ioctl(self.fd, ENABLE if on else DISABLE, 0)

    def take(self, tid: int) -> "tuple[bytes, int, int]":
        """The thread's sample records since the last time, how many, and how many were lost."""
        size = RING_PAGES * mmap.PAGESIZE
        head, tail = struct.unpack_from("=QQ", self.ring, 1024)
        start, length = tail % size, head - tail
        base = mmap.PAGESIZE
        data = self.ring[base + start : base + min(start + length, size)]
        if len(data) < length:
            data += self.ring[base : base + length - len(data)]
        struct.pack_into("=Q", self.ring, 1032, head)
        return _of_thread(data, tid)

    def close(self) -> None:
        """Remove it."""
        self.ring.close()
        os.close(self.fd)


def _of_thread(data: bytes, tid: int) -> "tuple[bytes, int, int]":
    """Records are: header (type, misc, size), ip, pid, tid, ... in the order of the sample bits."""
    kept = []
    at = lost = 0
    while at + 8 <= len(data):
        kind, _, size = struct.unpack_from("=IHH", data, at)
        if size < 8:
            break
        if kind == SAMPLE:
            if struct.unpack_from("=I", data, at + 20)[0] == tid:
                kept.append(data[at : at + size])
        elif kind == LOST:
            lost += struct.unpack_from("=Q", data, at + 16)[0]
        at += size
    return b"".join(kept), len(kept), lost


def reason(error: OSError) -> str:
    """Why the kernel refused an event, in words."""
    code = error.errno or 0
    return "%s: %s" % (os.strerror(code), WHY[code]) if code in WHY else os.strerror(code)


assert sys.byteorder == "little", "the attribute is packed for little-endian machines"
