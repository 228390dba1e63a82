"""The kernel's own symbol table, found in its memory by what it looks like.

VMCOREINFO tells its place since 6.0 (5fd8fea935a1 "vmcoreinfo: include kallsyms symbols"); in the
dump of an older kernel without debug symbols nothing does. scripts/kallsyms.c wrote it, each part
aligned to 8 bytes, in this order (4.20 to 6.0; CONFIG_KALLSYMS_BASE_RELATIVE and, on x86-64,
CONFIG_KALLSYMS_ABSOLUTE_PERCPU): offsets, relative base, number of symbols, compressed names,
markers (where each 256th name begins), token table, token index.
"""

import struct
from collections.abc import Callable, Sequence

from kwhy.case.evidence import PAGE

_IMAGE = 64 << 20
"""Bytes behind the start of the text in which the tables lie."""
_CHUNK = 1 << 20
_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
"""Tokens of a character that occurs are the character: the digits are 48 to 57."""
_EVERY = 256
_LONGEST_NAME = 128


def text_in_memory(read: Callable[[int, int], bytes | None], start: int) -> bytes | None:
    """The table in the format of /proc/kallsyms, without modules; None where there is none.

    ``read`` reads kernel memory (None: there is none), ``start`` is the address of _stext.
    """
    image = b"".join(_chunk(read, start + at) for at in range(0, _IMAGE, _CHUNK))
    at = image.find(_DIGITS)
    while at >= 0:
        found = _table(image, at)
        if found is not None:
            return found
        at = image.find(_DIGITS, at + 1)
    return None


def _chunk(read: Callable[[int, int], bytes | None], address: int) -> bytes:
    whole = read(address, _CHUNK)
    if whole is not None:
        return whole
    pages = range(address, address + _CHUNK, PAGE)
    return b"".join(read(page, PAGE) or bytes(PAGE) for page in pages)


def _table(image: bytes, digits: int) -> bytes | None:
    """The table whose token table has its digits at ``digits``."""
    start = digits
    for _token in range(ord("0")):
        start = image.rfind(b"\0", 0, start - 1) + 1
        if digits - start > _EVERY * _LONGEST_NAME:
            return None
    tokens = image[start : start + _EVERY * _LONGEST_NAME].split(b"\0")[:_EVERY]
    markers = [] if start % 8 else _markers(image, start)
    return _names(image, start, markers, tokens) if len(markers) > 1 else None


def _markers(image: bytes, end: int) -> list[int]:
    """The ascending offsets from 0 on that end at ``end``, or at 4 bytes to fill up before it."""
    if image[end - 4 : end] == bytes(4):
        end -= 4
    out: list[int] = []
    while end >= 4:
        (value,) = struct.unpack_from("<I", image, end - 4)
        if value >= (out[-1] if out else end):
            return []
        out.append(value)
        end -= 4
        if not value:
            break
    return out[::-1]


def _names(
    image: bytes, end: int, markers: Sequence[int], tokens: Sequence[bytes]
) -> bytes | None:
    """Find the number of symbols in front of the names, which the markers behind them confirm."""
    end -= 4 * len(markers)
    for at in range(end - markers[-1] & -8, end - markers[-1] - _EVERY * _LONGEST_NAME, -8):
        if at < 16:
            return None
        (count,) = struct.unpack_from("<Q", image, at - 8)
        if (count + _EVERY - 1) // _EVERY != len(markers):
            continue
        names = _expanded(image, at, count, markers, tokens)
        if names is not None:
            (base,) = struct.unpack_from("<Q", image, at - 16)
            table = at - 16 - (4 * count + 7 & -8)
            return _lines(struct.unpack_from(f"<{count}i", image, table), base, names)
    return None


def _expanded(
    image: bytes, at: int, count: int, markers: Sequence[int], tokens: Sequence[bytes]
) -> list[bytes] | None:
    out, first = [], at
    for number in range(count):
        if not number % _EVERY and at - first != markers[number // _EVERY]:
            return None
        length = image[at]
        out.append(b"".join(tokens[byte] for byte in image[at + 1 : at + 1 + length]))
        at += 1 + length
    return out


def _lines(offsets: Sequence[int], base: int, names: Sequence[bytes]) -> bytes:
    """A negative offset counts down from the base, others are absolute (kallsyms_sym_address())."""
    rows = [
        b"%016x %c %s" % (offset if offset >= 0 else base - 1 - offset, name[0], name[1:])
        for offset, name in zip(offsets, names, strict=True)
        if name
    ]
    return b"\n".join(rows) + b"\n"
