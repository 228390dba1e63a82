"""Raw pages to events: against the kernel's own rendering, a slow reader, and hostile pages."""

import random
import re
import struct

import pytest
from tests.unit.record_build import KERNELS, PageWriter, common, kept

from kwhy.errors import InputError
from kwhy.record.pages import Gap, PageLayout, decode_pages, page_layout

LINE = re.compile(r"-(\d+)\s+\[(\d+)\] (\S+)\s+(\d+)\.(\d+): (\S+)")


def payload(number: int, tid: int = 5, extra: int = 16) -> bytes:
    """A function-like event."""
    return common(number, tid) + bytes(extra)


@pytest.mark.parametrize("series", KERNELS)
def test_real_pages_decode_to_what_the_kernel_itself_printed(series: str) -> None:
    """Task, CPU, time and order of every event, as in the trace file of the same recording."""
    one = kept(f"eio-{series}")
    events = decode_pages(one.pages)
    got = sorted(zip(events.time.tolist(), events.tid.tolist(), events.cpu.tolist(), strict=True))
    ours = [(tid, cpu, (time + 500) // 1000) for time, tid, cpu in got]
    theirs = []
    for line in one.text:
        match = LINE.search(line)
        assert match, line
        tid, cpu, _, seconds, micros, _ = match.groups()
        theirs.append((int(tid), int(cpu), int(seconds) * 10**6 + int(micros)))
    assert len(theirs) == len(ours)
    assert all(t[:2] == o[:2] and abs(t[2] - o[2]) <= 1 for t, o in zip(theirs, ours, strict=True))
    assert (0, 0, []) == (events.damaged, events.trailing, events.gaps)


def slow(page: bytes) -> list[tuple[int, int, int]]:
    """(time, payload offset, payload size) the way a loop over one page reads them."""
    stamp, commit = struct.unpack_from("<QQ", page)
    at, end, time, out = 16, 16 + (commit & (1 << 30) - 1), stamp, []
    while at < end:
        (head,) = struct.unpack_from("<I", page, at)
        kind, delta = head & 31, head >> 5
        if kind == 29 and not delta:
            break
        (array0,) = struct.unpack_from("<I", page, at + 4)
        if kind == 29:
            time += delta if delta > 1 else 0
            at += 4 + array0
        elif kind == 30:
            time += delta | array0 << 27
            at += 8
        elif kind == 31:
            time = (time & ~((1 << 59) - 1)) | delta | array0 << 27
            at += 8
        elif kind:
            time += delta
            out.append((time, at + 4, kind * 4))
            at += 4 + kind * 4
        else:
            time += delta
            out.append((time, at + 8, array0 - 4))
            at += 4 + array0
    return out


def test_many_pages_side_by_side_give_what_a_loop_gives() -> None:
    """Every kind of event in random order on pages of random fill."""
    dice = random.Random(7)
    pages = []
    clock = 1 << 61  # beyond the 59 bits of an absolute stamp
    for _ in range(300):
        page, now = PageWriter(clock), clock
        while page.room() > 600 and dice.random() > 0.01:
            kind = dice.randrange(8)
            if kind == 0:
                page.extend(dice.randrange(1 << 40))
            elif kind == 1:
                now += dice.randrange(1 << 44)
                page.absolute(now)
            elif kind == 2:
                page.discarded(dice.randrange(1, 20), dice.choice([1, 500]))
            elif kind == 3:
                page.event(payload(2, extra=dice.randrange(105, 500)), dice.randrange(1 << 27))
            else:
                page.event(payload(1, extra=dice.randrange(0, 104)), dice.randrange(1000))
        pages.append(page.bytes())
        clock += 1 << 48
    events = decode_pages({0: b"".join(pages)})
    expected = [
        (time, number * 4096 + offset, size)
        for number, page_bytes in enumerate(pages)
        for time, offset, size in slow(page_bytes)
    ]
    got = list(
        zip(events.time.tolist(), events.offset.tolist(), events.size.tolist(), strict=True)
    )
    assert expected == got
    assert 0 == events.damaged


def test_a_discarded_event_keeps_its_time_but_not_its_data() -> None:
    """Its delta counts, except the 1 that stands for 0."""
    page = PageWriter(1000).event(payload(1)).discarded(3, 40).event(payload(1), 2)
    page.discarded(3, 1).event(payload(1), 3)
    assert [1000, 1042, 1045] == decode_pages({0: page.bytes()}).time.tolist()


def test_an_absolute_stamp_takes_its_upper_bits_from_the_page() -> None:
    """59 bits are written; the clock may have passed a multiple of 2^59 since the page began."""
    start, later = (1 << 59) - 5, (1 << 59) + 7
    page = PageWriter(start).event(payload(1)).absolute(later).event(payload(1), 2)
    assert [start, later + 2 - (1 << 59)] == decode_pages({0: page.bytes()}).time.tolist()
    start, later = (3 << 59) - 5, (3 << 59) + 7
    page = PageWriter(start).event(payload(1)).absolute(later).event(payload(1), 2)
    assert [start, later + 2] == decode_pages({0: page.bytes()}).time.tolist()


def test_an_end_mark_ends_the_page_without_being_damage() -> None:
    """Padding without a delta: the kernel closed the page early."""
    page = PageWriter(0).event(payload(1)).raw(29, 0).event(payload(1))
    events = decode_pages({0: page.bytes()})
    assert (1, 0) == (len(events), events.damaged)


def test_lost_events_are_told_with_their_count_where_the_kernel_stored_it() -> None:
    """RB_MISSED_STORED has a count behind the data, RB_MISSED_EVENTS alone has none."""
    told = PageWriter(500).event(payload(1)).bytes(lost=42)
    untold = PageWriter(900).event(payload(1)).bytes(flags=1 << 31)
    events = decode_pages({3: told + untold})
    assert [Gap(3, 500, 42), Gap(3, 900, None)] == events.gaps
    assert (2, 0) == (len(events), events.damaged)


def test_the_cpus_stay_apart_and_in_order() -> None:
    """Rows come CPU by CPU, each in the order of writing."""
    pages = {1: PageWriter(10).event(payload(1, 7)).bytes(),
             0: PageWriter(20).event(payload(1, 8)).bytes()}  # fmt: skip
    events = decode_pages(pages)
    assert ([0, 1], [8, 7]) == (events.cpu.tolist(), events.tid.tolist())


def test_common_fields_are_told_apart() -> None:
    """Type, flags, preemption count and task come from the first two words."""
    page = PageWriter(0).event(common(384, -1, 0x88, 3) + bytes(8))
    events = decode_pages({0: page.bytes()})
    row = (events.type[0], events.flags[0], events.preempt[0], events.tid[0], events.size[0])
    assert (384, 0x88, 3, -1, 16) == tuple(int(v) for v in row)


def test_no_pages_are_no_events() -> None:
    """Nothing recorded, or empty pages only."""
    assert 0 == len(decode_pages({}))
    assert 0 == len(decode_pages({0: b"", 1: PageWriter(5).bytes()}))


def test_a_page_cut_off_is_counted_and_left_out() -> None:
    """Half a page at the end of a stream."""
    whole = PageWriter(0).event(payload(1)).bytes()
    events = decode_pages({0: whole + whole[:1000]})
    assert (1, 1000, 0) == (len(events), events.trailing, events.damaged)


@pytest.mark.parametrize(
    "page",
    [
        PageWriter(0).event(payload(1)).bytes(commit=1 << 29),
        PageWriter(0).event(payload(1)).raw(0, 1, struct.pack("<I", 0)).bytes(),
        PageWriter(0).event(payload(1)).raw(0, 1, struct.pack("<I", 0xFFFFFFFF)).bytes(),
        PageWriter(0).event(payload(1)).raw(0, 1).bytes(),
        PageWriter(0).event(payload(1)).raw(29, 9, struct.pack("<I", 0x7FFFFFFC)).bytes(),
        PageWriter(0).event(payload(1)).raw(28, 0).bytes(),
        PageWriter(0).event(payload(1)).raw(30, 0).bytes(),
        PageWriter(0).event(payload(1)).raw(1, 0, b"abcd").bytes(),
    ],
    ids=["commit", "length 0", "huge length", "no length", "huge padding", "cut", "extend", "tiny"],
)
def test_what_does_not_fit_ends_its_page_only(page: bytes) -> None:
    """The event before the damage and the page after it are read; the damage is counted."""
    good = PageWriter(99).event(payload(1)).bytes()
    events = decode_pages({0: page + good})
    assert ([0, 99], 1) == (events.time.tolist(), events.damaged)


def test_random_bytes_never_raise_and_never_point_outside() -> None:
    """Hostile pages: any bytes at all."""
    dice = random.Random(3)
    noise = b"".join(
        struct.pack("<QQ", dice.randrange(1 << 64), dice.choice([4080, 4081, dice.randrange(4096)]))
        + dice.randbytes(4080)
        for _ in range(200)
    )
    events = decode_pages({0: noise})
    assert bool((events.offset + events.size <= len(noise)).all())
    assert bool((events.offset // 4096 == (events.offset + events.size - 1) // 4096).all())


def test_larger_sub_buffers_are_read_by_their_own_layout() -> None:
    """buffer_subbuf_size_kb (6.8) makes pages of more than 4 KiB."""
    text = (
        "	field: u64 timestamp;	offset:0;	size:8;	signed:0;\n"
        "	field: local_t commit;	offset:8;	size:8;	signed:1;\n"
        "	field: int overwrite;	offset:8;	size:1;	signed:1;\n"
        "	field: char data;	offset:16;	size:8176;	signed:0;\n"
    )
    layout = page_layout(text)
    assert PageLayout(8192, 8, 8, 16) == layout
    page = PageWriter(0, 8192)
    for _ in range(250):
        page.event(payload(1), 1)
    assert 250 == len(decode_pages({0: page.bytes()}, layout))


@pytest.mark.parametrize(
    "text", ["nonsense", "	field: u64 timestamp;	offset:0;	size:8;	signed:0;\n"
             "	field: local_t commit;	offset:8;	size:8;	signed:1;\n"
             "	field: char data;	offset:16;	size:999999999;	signed:0;\n"]
)  # fmt: skip
def test_an_impossible_page_layout_is_bad_input(text: str) -> None:
    """A hostile case cannot make us allocate or read nonsense."""
    with pytest.raises(InputError):
        page_layout(text)
