"""Where the emulator keeps the registers of its processor.

Reading sixteen of them through its interface takes ten times as long as running the block of code
they are read for. Its structures are its own, so nothing is assumed of them: the registers are
given values that occur nowhere else, and are used where these are then found, or not at all.
"""

import ctypes
import os
import struct
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from unicorn.unicorn_py3.unicorn import uclib

_HANDLE = 4096  # bytes of the handle in which a pointer to the processor is looked for
_PROCESSOR = 1 << 16  # bytes of the processor in which its registers are
_WORD = struct.Struct("<Q")
_USER_END = 1 << 47

_known: list[tuple[int, int]] = []
"""Where in the handle the pointer is, and where behind it the registers are, once found."""


def registers_inside(uc: Any, ids: Sequence[int]) -> int | None:
    """Host address at which the registers ``ids`` of a new emulator lie one after the other.

    None where they are not found so. All are 0 afterwards.
    """
    try:
        with Path("/proc/self/mem").open("rb", buffering=0) as memory:
            place = _place(memory, uc, ids)
    except OSError:
        place = None
    _write(uc, ids, [0] * len(ids))
    return place


def _place(memory: FileIO, uc: Any, ids: Sequence[int]) -> int | None:
    marks = _mark(uc, ids, 1)
    handle = _read(memory, uc._uch.value, _HANDLE)
    if not _known:
        _known.extend(_search(memory, handle, marks))
    for at, offset in _known:
        place: int = _WORD.unpack_from(handle, at)[0] + offset
        if _read(memory, place, len(marks)) == marks:
            marks = _mark(uc, ids, 2)
            return place if _read(memory, place, len(marks)) == marks else None
    return None


def _mark(uc: Any, ids: Sequence[int], salt: int) -> bytes:
    """Write values that occur nowhere else; as they lie in memory."""
    values = [0x6B77_6879_0000_0000 + (salt << 24) + number for number in range(len(ids))]
    _write(uc, ids, values)
    return struct.pack(f"<{len(ids)}Q", *values)


def _write(uc: Any, ids: Sequence[int], values: Sequence[int]) -> None:
    for number, value in zip(ids, values, strict=True):
        word = ctypes.c_uint64(value)
        uclib.uc_reg_write(uc._uch, number, ctypes.byref(word))


def _search(memory: FileIO, handle: bytes, marks: bytes) -> list[tuple[int, int]]:
    for at in range(0, len(handle), _WORD.size):
        (pointer,) = _WORD.unpack_from(handle, at)
        if not _HANDLE <= pointer < _USER_END or pointer % _WORD.size:
            continue
        try:
            found = _read(memory, pointer, _PROCESSOR).find(marks)
        except OSError:
            continue
        if found >= 0:
            return [(at, found)]
    return []


def _read(memory: FileIO, address: int, size: int) -> bytes:
    """This process's memory, up to where it ends; OSError where there is none."""
    return os.pread(memory.fileno(), size, address)
