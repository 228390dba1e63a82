"""Samples of a thread: the records of perf events, as the agent passes them on.

Source: PERF_RECORD_SAMPLE in include/uapi/linux/perf_event.h; the fields have a fixed order, each
is there only if its bit of ``sample_type`` was set. The agent sets IP, TID, TIME and CPU, and as
asked CALLCHAIN and REGS_INTR.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kwhy.errors import InputError

_CONTEXT = (1 << 64) - 4095  # from here on entries of a chain are markers (PERF_CONTEXT_MAX)
_MODE, _USER = 7, 2  # PERF_RECORD_MISC_CPUMODE_MASK, PERF_RECORD_MISC_USER


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the thread: ``time`` in ns of the trace clock, ``chain`` return addresses of the
    kernel's frames, innermost caller first, ``registers`` by name as they were interrupted."""

    address: int
    time: int
    cpu: int
    user: bool
    chain: tuple[int, ...]
    registers: dict[str, int]


def decode(data: bytes, chain: bool, registers: Sequence[str]) -> list[Sample]:
    """The samples in ``data``, in order of time.

    ``registers`` names what was kept, in the order of their bits. Raises InputError for records
    that are not what the kernel writes.
    """
    out = []
    at = 0
    try:
        while at < len(data):
            _, misc, size = struct.unpack_from("<IHH", data, at)
            if size < 40 or at + size > len(data):
                raise InputError("damaged samples: a record has an impossible size")
            out.append(_sample(data[at : at + size], misc, chain, registers))
            at += size
    except struct.error:
        raise InputError("damaged samples: a record is cut short") from None
    return sorted(out, key=lambda sample: sample.time)


def _sample(record: bytes, misc: int, chain: bool, registers: Sequence[str]) -> Sample:
    address, _, _, time, cpu, _ = struct.unpack_from("<QIIQII", record, 8)
    at = 40
    frames: tuple[int, ...] = ()
    if chain:
        (count,) = struct.unpack_from("<Q", record, at)
        if count > 4096:
            raise InputError("damaged samples: a call chain has an impossible length")
        entries = struct.unpack_from(f"<{count}Q", record, at + 8)
        at += 8 + 8 * count
        frames = tuple(entry for entry in entries if entry < _CONTEXT)[1:]
    values: dict[str, int] = {}
    if registers:
        (abi,) = struct.unpack_from("<Q", record, at)
        if abi:
            found = struct.unpack_from(f"<{len(registers)}Q", record, at + 8)
            values = dict(zip(registers, found, strict=True))
    return Sample(address, time, cpu, misc & _MODE == _USER, frames, values)
