"""Runs in the guest: decodes the trace.dat of trace-cmd with kwhy's decoder, prints JSON.

    python3 bench_guest.py KWHY.zip TRACE.DAT

The columns of every event (time, task, CPU, type, flags) and the fields of the function and
system-call events are read, which is what kwhy does with a recording before it looks at a call.
"""

import json
import struct
import sys
import time
from pathlib import Path


def cpu_pages(data: bytes) -> dict[int, bytes]:
    """The raw pages per CPU of a trace.dat, version 6 (trace-cmd.dat.v6(5))."""
    at = data.rindex(b"flyrecord\0") + 10
    count = (at_options(data, at) - at) // 16
    out = {}
    for cpu in range(count):
        offset, size = struct.unpack_from("<QQ", data, at + 16 * cpu)
        out[cpu] = data[offset : offset + size]
    return out


def at_options(data: bytes, at: int) -> int:
    """Where the table of CPUs ends: before the first offset it names."""
    (first,) = struct.unpack_from("<Q", data, at)
    end = at
    while end + 16 <= first:
        offset, size = struct.unpack_from("<QQ", data, end)
        if offset < first or offset + size > len(data):
            break
        end += 16
        if offset + size == len(data):
            break
    return end


def formats(data: bytes) -> dict[str, bytes]:
    """The event formats that the file brings along, found by their first line."""
    found = {}
    for name in (b"function", b"sys_enter", b"sys_exit"):
        start = data.index(b"name: " + name + b"\n")
        found[name.decode()] = data[start : data.index(b"print fmt:", start)]
    return found


def main() -> None:
    """Decode twice (the first pass warms up memory) and print both times."""
    sys.path.insert(0, sys.argv[1])
    from kwhy.record.formats import columns, of_type, parse_format, u64_column
    from kwhy.record.pages import decode_pages
    from kwhy.record.windows import pair

    data = Path(sys.argv[2]).read_bytes()
    pages, texts = cpu_pages(data), formats(data)
    seconds = []
    count = 0
    for _ in range(3):
        begin = time.perf_counter()
        parsed = {name: parse_format(text) for name, text in texts.items()}
        events = decode_pages(pages)
        rows = of_type(events, parsed["function"])
        u64_column(events, parsed["function"], rows, "ip")
        u64_column(events, parsed["function"], rows, "parent_ip")
        for name in ("sys_enter", "sys_exit"):
            columns(events, parsed[name], of_type(events, parsed[name]))
        windows = pair(events, parsed["sys_enter"], parsed["sys_exit"])
        seconds.append(time.perf_counter() - begin)
        count = len(events)
    facts = {"events": count, "seconds": seconds, "calls": len(windows), "damaged": events.damaged}
    print(json.dumps(facts))


main()
