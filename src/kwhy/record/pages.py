"""Raw ring-buffer pages to events, many pages side by side.

The layout is that of ``kernel/trace/ring_buffer.c`` (``struct buffer_data_page``, ``struct
ring_buffer_event``) and of ``events/header_page`` and ``events/header_event`` in tracefs: a page
is a 64-bit time stamp, a commit word and events; an event is one 32-bit word (type_len 5 bits,
time_delta 27 bits) and its payload, a multiple of 4 bytes.

An event's place is known only when all before it on its page are: the walk over a page is
sequential. But pages are independent, so the walk takes one step on *every* page at a time, as
one numpy operation, and everything else (times, types, fields) is columns over all events.

Pages come from the target and may be damaged or hostile: whatever does not fit its page ends that
page and is counted, nothing is trusted, nothing loops.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kwhy.errors import InputError

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
AnyArray = npt.NDArray[Any]

# enum ring_buffer_type, include/linux/ring_buffer.h
_DATA_MAX = 28
_PADDING = 29
_TIME_EXTEND = 30
_TIME_STAMP = 31

# kernel/trace/ring_buffer.c: flags in the commit word of a page given to user space
_MISSED_EVENTS = 1 << 31
_MISSED_STORED = 1 << 30
_COMMIT_MASK = _MISSED_STORED - 1

_TS_BITS = np.uint64((1 << 59) - 1)  # an absolute stamp holds 59 bits: 27 + 32

_CHUNK_PAGES = 2048  # pages walked at a time: their active cache lines should fit the L2 cache
_MAX_PAGE = 1 << 20


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Where things are in one ring-buffer page, in bytes."""

    size: int = 4096
    commit: int = 8
    commit_size: int = 8
    data: int = 16


def page_layout(header_page: str | bytes | None) -> PageLayout:
    """The layout that the target's ``events/header_page`` describes.

    Without the text (None or empty) the layout of every 64-bit kernel with 4 KiB pages. Raises
    InputError when the text is not such a description.
    """
    if not header_page:
        return PageLayout()
    text = header_page.decode("utf-8", "replace") if isinstance(header_page, bytes) else header_page
    found: dict[str, tuple[int, int]] = {}
    for name, offset, size in re.findall(
        r"field:[^;]*?(\w+);\s*offset:(\d{1,9});\s*size:(\d{1,9});", text
    ):
        found[name] = (int(offset), int(size))
    try:
        commit, data = found["commit"], found["data"]
        stamp = found["timestamp"]
    except KeyError as missing:
        raise InputError(f"the recording's header_page has no field {missing}") from None
    layout = PageLayout(data[0] + data[1], commit[0], commit[1], data[0])
    if (
        stamp != (0, 8)
        or layout.commit_size not in (4, 8)
        or layout.data % 4
        or layout.size % 4
        or not 0 < layout.data < layout.size <= _MAX_PAGE
        or layout.commit % 4
        or layout.commit + layout.commit_size > layout.data
    ):
        raise InputError("the recording's header_page describes an impossible page")
    return layout


@dataclass(frozen=True, slots=True)
class Gap:
    """Events were lost on this CPU before `time` (ns); `count` is None when not known."""

    cpu: int
    time: int
    count: int | None


@dataclass(slots=True)
class Events:
    """Events as columns, one row each: per CPU in the order they were written.

    `offset` and `size` (bytes) are the place of the payload, which begins with the common fields,
    in `data`. `type` is the event id that the format files name, `tid` the kernel's common_pid.
    """

    data: U8
    time: U64
    offset: I64
    size: npt.NDArray[np.int32]
    type: npt.NDArray[np.uint16]
    flags: U8
    preempt: U8
    tid: npt.NDArray[np.int32]
    cpu: npt.NDArray[np.int32]
    gaps: list[Gap] = field(default_factory=list)
    damaged: int = 0  # pages on which something did not fit; their readable part is kept
    trailing: int = 0  # bytes after the last whole page, ignored

    def __len__(self) -> int:
        return len(self.time)


def decode_pages(pages: Mapping[int, bytes], layout: PageLayout | None = None) -> Events:
    """All events of `pages` (CPU number to the concatenated raw pages of that CPU).

    Never raises on damaged pages: see `Events.damaged`, `Events.trailing` and `Events.gaps`.
    Little-endian targets only (every architecture kwhy knows).
    """
    layout = layout or PageLayout()
    trailing = 0
    whole: list[bytes | memoryview] = []
    cpus: list[npt.NDArray[np.int32]] = []
    for cpu in sorted(pages):
        raw = pages[cpu]
        count, rest = divmod(len(raw), layout.size)
        trailing += rest
        whole.append(memoryview(raw)[: count * layout.size] if rest else raw)
        cpus.append(np.full(count, cpu, np.int32))
    # Eight spare bytes at the end: a 64-bit read of the last word stays inside the buffer.
    data = np.frombuffer(b"".join([*whole, b"\0" * 8]), np.uint8)
    page_cpu = np.concatenate(cpus) if cpus else np.zeros(0, np.int32)
    return _decode(data, page_cpu, layout, trailing)


def _decode(
    data: U8, page_cpu: npt.NDArray[np.int32], layout: PageLayout, trailing: int
) -> Events:
    words = data[: len(data) // 4 * 4].view("<u4")
    pages = len(page_cpu)
    base = np.arange(pages, dtype=np.int64) * (layout.size // 4)
    stamp = _u64_at(words, base)
    commit = words[base + layout.commit // 4] if pages else np.zeros(0, np.uint32)
    used = (commit & np.uint32(_COMMIT_MASK)).astype(np.int64)
    room = layout.size - layout.data
    damaged = used > room
    used = np.minimum(used, room)
    first = base + layout.data // 4
    end = first + used // 4

    # A chunk at a time, so that the intermediate columns stay in the cache too.
    chunks: list[tuple[AnyArray, ...]] = []
    for start in range(0, pages, _CHUNK_PAGES):
        part = slice(start, min(start + _CHUNK_PAGES, pages))
        at, page = _walk(words, first[part], end[part], damaged[part])
        if len(at):
            chunks.append(_columns(words, at, page, stamp[part], page_cpu[part], damaged[part]))
    columns = [np.concatenate(column) for column in zip(*chunks, strict=True)] or [
        np.zeros(0, kind) for kind in ("u8", "i8", "i4", "u2", "u1", "u1", "i4", "i4")
    ]
    time, offset, size, kind, flags, preempt, tid, cpu = columns
    return Events(
        data, time, offset, size, kind, flags, preempt, tid, cpu,
        gaps=_gaps(words, page_cpu, base, stamp, commit, used, layout),
        damaged=int(np.count_nonzero(damaged)),
        trailing=trailing,
    )


def _columns(
    words: U32,
    at: I64,
    page: I64,
    stamp: U64,
    page_cpu: npt.NDArray[np.int32],
    damaged: npt.NDArray[np.bool_],
) -> tuple[AnyArray, ...]:
    """The columns of `Events` for the event headers at `at`."""
    header = words.take(at)
    kind = (header & np.uint32(31)).astype(np.uint8)
    time = _times(words, at, header, kind, page, stamp)
    size = _SIZES.take(kind)
    place = at + 1
    special = np.flatnonzero(size < 8)
    if len(special):
        long_form = special[kind[special] == 0]
        # array[0] is on the page: the walk has checked that
        size[long_form] = np.minimum(words[place[long_form]], _MAX_PAGE).astype(np.int32) - 4
        place[long_form] += 1
        is_data = kind <= _DATA_MAX
        short = is_data & (size < 8)  # no room for the common fields: not a trace event
        damaged[page[short]] = True
        keep = np.flatnonzero(is_data & ~short)
        time, size, place, page = time[keep], size[keep], place[keep], page[keep]
    common = words.take(place)
    return (
        time,
        place * 4,
        size,
        common.astype(np.uint16),
        (common >> np.uint32(16)).astype(np.uint8),
        (common >> np.uint32(24)).astype(np.uint8),
        words.take(place + 1).view(np.int32),
        page_cpu.take(page),
    )


# Payload bytes by type_len; 0 for those that have none or say it elsewhere.
_SIZES = np.array([*range(0, 4 * _DATA_MAX + 1, 4), 0, 0, 0], np.int32)

# Words an event takes by its type_len; 0 means: look closer (length in array[0], or padding).
_WORDS = np.array([0, *range(2, _DATA_MAX + 2), 0, 2, 2], np.int64)


def _walk(words: U32, first: I64, end: I64, damaged: npt.NDArray[np.bool_]) -> tuple[I64, I64]:
    """Word index and page number of every event header, page by page, in order.

    `first` and `end` bound each page's events (word indices). Pages on which an event does not
    fit are marked in `damaged` and end there.
    """
    steps: list[I64] = []
    owners: list[I64] = []
    page = np.flatnonzero(first < end)
    at, limit = first[page], end[page]
    while len(at):
        header = words.take(at)
        length = _WORDS.take(header & np.uint32(31))
        if not length.all():
            _special_lengths(words, header, at, limit, length)
        following = at + length
        fits = following <= limit
        if not fits.all():
            damaged[page[~fits & (length < _END)]] = True
            page, at, limit, following = page[fits], at[fits], limit[fits], following[fits]
        steps.append(at)
        owners.append(page)
        alive = following < limit
        if not alive.all():
            page, following, limit = page[alive], following[alive], limit[alive]
        at = following
    if not steps:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    places = np.concatenate(steps)
    pages = np.concatenate(owners)
    # A step holds one event of each page. Sorting by page (16 bits: a radix sort) brings each
    # page's events together and, being stable, leaves them in order.
    order = np.argsort(pages.astype(np.uint16), kind="stable")
    return places.take(order), pages.take(order)


# Lengths no page holds end the walk of that page: the kernel's own end mark, and damage.
_END = 1 << 40
_DAMAGE = _END - 1


def _special_lengths(words: U32, header: U32, at: I64, limit: I64, length: I64) -> None:
    """Fill in the lengths (words) of events whose type_len does not say it."""
    which = np.flatnonzero(length == 0)
    here = at[which]
    head = header[which]
    has_array = here + 1 < limit[which]
    array0 = words[np.where(has_array, here + 1, here)].astype(np.int64)
    # rb_event_length(): array[0] counts itself but not the header word
    long_words = 1 + (array0 + 3) // 4
    null = head == _PADDING  # padding whose time_delta is 0: the rest of the page is empty
    too_short = array0 < 4
    length[which] = np.where(null, _END, np.where(has_array & ~too_short, long_words, _DAMAGE))


def _times(words: U32, at: I64, header: U32, kind: U8, page: I64, stamp: U64) -> U64:
    """Time of each event in ns: the page's stamp plus all deltas so far, restarted by absolutes."""
    delta = (header >> np.uint32(5)).astype(np.uint64)
    restart = np.empty(len(page), np.bool_)
    restart[0] = True
    np.not_equal(page[1:], page[:-1], out=restart[1:])
    rare = np.flatnonzero(kind >= _PADDING)
    absolute = rare[:0]
    if len(rare):
        wide = rare[kind[rare] >= _TIME_EXTEND]
        delta[wide] |= words[at[wide] + 1].astype(np.uint64) << np.uint64(27)
        # A discarded event keeps its delta, except that 0 is written as 1, since padding without
        # a delta means the end of the page (rb_event_discard; check_buffer skips that 1 as well).
        pad = rare[kind[rare] == _PADDING]
        delta[pad[delta[pad] == 1]] = 0
        absolute = wide[kind[wide] == _TIME_STAMP]
    starts = np.flatnonzero(restart)
    if len(absolute):
        # rb_fix_abs_ts(): the upper 5 bits come from the time before
        before_it = stamp[page[absolute]]
        upper = before_it & ~_TS_BITS
        stamps = delta[absolute] | upper
        stamps[(upper != 0) & (stamps < before_it)] += np.uint64(1 << 59)
        delta[absolute] = 0
        restart[absolute] = True
        starts = np.flatnonzero(restart)
        start_times = stamp[page[starts]]
        start_times[np.searchsorted(starts, absolute)] = stamps
    else:
        start_times = stamp[page[starts]]
    total = np.cumsum(delta)
    before = total[starts] - delta[starts]
    runs = np.diff(np.append(starts, len(page)))
    total += np.repeat(start_times - before, runs)
    return total


def _gaps(
    words: U32,
    page_cpu: npt.NDArray[np.int32],
    base: I64,
    stamp: U64,
    commit: U32,
    used: I64,
    layout: PageLayout,
) -> list[Gap]:
    gaps = []
    for i in np.flatnonzero(commit & np.uint32(_MISSED_EVENTS)):
        count = None
        tail = layout.data + int(used[i])
        if commit[i] & np.uint32(_MISSED_STORED) and tail % 4 == 0 and tail + 8 <= layout.size:
            count = int(_u64_at(words, base[i : i + 1] + tail // 4)[0])
        gaps.append(Gap(int(page_cpu[i]), int(stamp[i]), count))
    return gaps


def _u64_at(words: U32, index: I64) -> U64:
    low = words[index].astype(np.uint64)
    return low | (words[index + 1].astype(np.uint64) << np.uint64(32))
