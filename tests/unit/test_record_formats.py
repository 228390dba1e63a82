"""Event formats: the format files of four kernels, and fields out of payloads."""

import struct

import numpy as np
import pytest
from tests.unit.record_build import COMMON, KERNELS, PageWriter, common, kept

from kwhy.errors import InputError
from kwhy.record.formats import columns, dynamic_bytes, of_type, parse_format, u64_column
from kwhy.record.pages import decode_pages

PROBE = (
    "name: p0\nID: 1500\nformat:\n"
    + COMMON
    + "	field:unsigned long __probe_ip;	offset:8;	size:8;	signed:0;\n"
    + "	field:s32 ret;	offset:16;	size:4;	signed:1;\n"
    + "	field:u16 pair[2];	offset:20;	size:4;	signed:0;\n"
    + "	field:__data_loc char[] name;	offset:24;	size:4;	signed:1;\n"
    + "	field:__rel_loc char[] tail;	offset:28;	size:4;	signed:1;\n"
    + '\nprint fmt: "field:int not_a_field; offset:1; size:1; signed:0;"\n'
)


@pytest.mark.parametrize("series", KERNELS)
def test_every_format_file_of_the_recording_is_understood(series: str) -> None:
    """Names, ids and the fields that kwhy reads, on each kernel."""
    blobs = kept(f"eio-{series}").story.blobs
    formats = {n: parse_format(t) for n, t in blobs.items() if n.startswith("format/")}
    enter = formats["format/raw_syscalls/sys_enter"]
    assert ("sys_enter", 6, 8) == (enter.name, enter.fields["args"].count, enter.fields["id"].size)
    assert 1 == formats["format/ftrace/function"].id
    assert {"ip", "parent_ip"} <= set(formats["format/ftrace/function"].fields)
    assert "filename" in formats["format/sched/sched_process_exec"].fields


def test_a_probe_event_gives_numbers_arrays_and_strings() -> None:
    """Signed numbers, small arrays, and both kinds of dynamic string."""
    fmt = parse_format(PROBE)
    body = struct.pack("<QiHHII", 0xFFFF0000, -5, 7, 8, 4 << 16 | 32, 3 << 16 | 4) + b"abc\0de\0\0"
    events = decode_pages({0: PageWriter(0).event(common(1500, 9) + body).bytes()})
    (row,) = of_type(events, fmt).tolist()
    values = columns(events, fmt, np.array([row]))[0]
    assert (0xFFFF0000, -5, [7, 8]) == (
        int(values["__probe_ip"]), int(values["ret"]), values["pair"].tolist()
    )  # fmt: skip
    assert b"abc" == dynamic_bytes(events, fmt, row, "name")
    assert b"de" == dynamic_bytes(events, fmt, row, "tail")
    assert [0xFFFF0000] == u64_column(events, fmt, np.array([row]), "__probe_ip").tolist()


def test_a_string_that_points_outside_of_its_event_is_empty() -> None:
    """A hostile locator reads nothing."""
    fmt = parse_format(PROBE)
    body = struct.pack("<QiHHII", 1, 0, 0, 0, 0xFFFF << 16 | 0xFFFF, 0x10 << 16 | 0xFFF0)
    events = decode_pages({0: PageWriter(0).event(common(1500, 9) + body).bytes()})
    assert [b"", b""] == [dynamic_bytes(events, fmt, 0, name) for name in ("name", "tail")]


def test_an_event_shorter_than_its_format_is_not_read() -> None:
    """Its missing fields would be somebody else's bytes."""
    fmt = parse_format(PROBE)
    events = decode_pages({0: PageWriter(0).event(common(1500, 9) + bytes(8)).bytes()})
    assert [] == of_type(events, fmt).tolist()


def test_text_in_the_print_format_is_no_field() -> None:
    """Only what stands before "print fmt" describes the event."""
    assert "not_a_field" not in parse_format(PROBE).fields


@pytest.mark.parametrize(
    "text",
    ["", "name: x\n", PROBE.replace("common_pid;	offset:4", "common_pid;	offset:12"),
     PROBE.replace("offset:16", "offset:99999999")],
)  # fmt: skip
def test_a_broken_format_file_is_bad_input(text: str) -> None:
    """Never a traceback."""
    with pytest.raises(InputError):
        parse_format(text)
