"""Runs in the guest: records with what functions are called, by probes at their starts.

    python3 entries_guest.py arm NAMES.json
    python3 entries_guest.py read

``read`` prints JSON: ``ran``, how often each thread had given up the CPU before it was read, and
``entered``, by "TID FUNCTION STACK-POINTER" the argument registers of the last such call. A thread
that did not run since is still in these calls.
"""

import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

TRACING = Path("/sys/kernel/tracing")
PLACES = ("di", "si", "dx", "cx", "r8", "r9")
FETCH = " ".join(f"a{number}=%{place}:x64" for number, place in enumerate(PLACES))
HIT = re.compile(r"\s*\S.*?-(\d+)\s+\[\d+\].*: f([0-9a-f]{16}): \(\S+\) sp=0x(\w+) (a0=.*)")
SWITCHES = re.compile(r"ctxt_switches:\s*(\d+)")


def write(file: str, text: str) -> None:
    """One command to tracefs, added to what there is; its files do not like to be sought in."""
    handle = os.open(TRACING / file, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def arm(names: set[str]) -> None:
    """Probe every function of these names that the kernel lets be probed."""
    write("buffer_size_kb", "65536")
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, kind, name, *module = line.split()
        if kind in "tT" and name in names and not module:
            with suppress(OSError):
                write("kprobe_events", f"p:t/f{address} 0x{address} sp=%sp:x64 {FETCH}\n")
    write("events/t/enable", "1")


def switches() -> dict[str, int]:
    """By thread, how often it gave up the CPU."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/task/*/status"):
        with suppress(OSError):  # it ended
            found[status.parent.name] = sum(map(int, SWITCHES.findall(status.read_text())))
    return found


def main() -> None:
    """See above."""
    if sys.argv[1] == "arm":
        arm(set(json.loads(Path(sys.argv[2]).read_text())))
        return
    ran = switches()
    write("events/t/enable", "0")
    entered = {}
    with (TRACING / "trace").open() as trace:
        for hit in filter(None, map(HIT.match, trace)):
            values = [word.split("=")[1] for word in hit[4].split()]
            entered[f"{hit[1]} {int(hit[2], 16):x} {hit[3]}"] = values
    json.dump({"ran": ran, "entered": entered}, sys.stdout)


main()
