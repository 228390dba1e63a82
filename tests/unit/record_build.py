"""Builds trace pages and recordings for the tests of `kwhy.record`; reads the kept real ones."""

import json
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kwhy.record.recording import Recording, read_recording

DATA = Path(__file__).parent / "data" / "record"
PAGE = 4096
KERNELS = ("5.10", "6.1", "6.12", "7.2")

COMMON = """	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

"""
SYS_ENTER = (
    "name: sys_enter\nID: 384\nformat:\n"
    + COMMON
    + "	field:long id;	offset:8;	size:8;	signed:1;\n"
    + "	field:unsigned long args[6];	offset:16;	size:48;	signed:0;\n"
)
SYS_EXIT = (
    "name: sys_exit\nID: 383\nformat:\n"
    + COMMON
    + "	field:long id;	offset:8;	size:8;	signed:1;\n"
    + "	field:long ret;	offset:16;	size:8;	signed:1;\n"
)


class PageWriter:
    """One ring-buffer page, written event by event as kernel/trace/ring_buffer.c does."""

    def __init__(self, stamp: int, size: int = PAGE) -> None:
        self.stamp, self.size = stamp, size
        self.data = bytearray()

    def raw(self, type_len: int, delta: int, rest: bytes = b"") -> "PageWriter":
        """One event from its header's two parts and what follows the header."""
        self.data += struct.pack("<I", type_len | delta << 5) + rest
        return self

    def event(self, payload: bytes, delta: int = 0) -> "PageWriter":
        """A data event; its payload is filled up to whole words."""
        payload += b"\0" * (-len(payload) % 4)
        if 0 < len(payload) <= 112:
            return self.raw(len(payload) // 4, delta, payload)
        return self.raw(0, delta, struct.pack("<I", len(payload) + 4) + payload)

    def extend(self, delta: int) -> "PageWriter":
        """A time extend: delta in 59 bits."""
        return self.raw(30, delta & 0x7FFFFFF, struct.pack("<I", delta >> 27))

    def absolute(self, stamp: int) -> "PageWriter":
        """An absolute time stamp: its lower 59 bits."""
        return self.raw(31, stamp & 0x7FFFFFF, struct.pack("<I", stamp >> 27 & 0xFFFFFFFF))

    def discarded(self, words: int, delta: int = 1) -> "PageWriter":
        """An event that was reserved and then discarded."""
        rest = struct.pack("<I", words * 4) + b"\xaa" * ((words - 1) * 4)
        return self.raw(29, delta, rest)

    def room(self) -> int:
        """Bytes left."""
        return self.size - 16 - len(self.data)

    def bytes(self, flags: int = 0, lost: int | None = None, commit: int | None = None) -> bytes:
        """The page as user space reads it."""
        used = len(self.data) if commit is None else commit
        if lost is not None:
            flags |= 1 << 31 | 1 << 30
        tail = b"" if lost is None else struct.pack("<Q", lost)
        page = struct.pack("<QQ", self.stamp, used | flags) + bytes(self.data) + tail
        return page.ljust(self.size, b"\0")[: self.size]


def common(kind: int, tid: int, flags: int = 0, preempt: int = 0) -> bytes:
    """The common fields of an event."""
    return struct.pack("<HBBi", kind, flags, preempt, tid)


@dataclass
class Story:
    """A recording written down event by event, time running on by itself (1 us each)."""

    time: int = 1_000_000
    events: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    lost: dict[int, int] = field(default_factory=dict)
    formats: list[str] = field(default_factory=list)
    tasks: list[Any] = field(default_factory=list)
    status: int | None = None
    tails: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(
        default_factory=lambda: {
            "format/raw_syscalls/sys_enter": SYS_ENTER.encode(),
            "format/raw_syscalls/sys_exit": SYS_EXIT.encode(),
        }
    )

    def add(self, payload: bytes, cpu: int = 0) -> "Story":
        """Any event."""
        self.time += 1000
        self.events.setdefault(cpu, []).append((self.time, payload))
        return self

    def enter(self, tid: int, nr: int, *args: int, cpu: int = 0) -> "Story":
        """raw_syscalls:sys_enter."""
        six = [a & (1 << 64) - 1 for a in (*args, *[0] * 6)][:6]
        return self.add(common(384, tid) + struct.pack("<q6Q", nr, *six), cpu)

    def leave(self, tid: int, nr: int, ret: int, cpu: int = 0) -> "Story":
        """raw_syscalls:sys_exit."""
        return self.add(common(383, tid) + struct.pack("<qq", nr, ret), cpu)

    def call(self, tid: int, nr: int, ret: int, *args: int, cpu: int = 0) -> "Story":
        """A whole system call."""
        return self.enter(tid, nr, *args, cpu=cpu).leave(tid, nr, ret, cpu=cpu)

    def function(self, tid: int, ip: int, parent: int, flags: int = 0, cpu: int = 0) -> "Story":
        """ftrace:function."""
        return self.add(common(1, tid, flags) + struct.pack("<QQ", ip, parent), cpu)

    @property
    def pages(self) -> dict[int, bytes]:
        """Raw pages per CPU."""
        out: dict[int, bytes] = {}
        for cpu, events in self.events.items():
            parts: list[bytes] = []
            page: PageWriter | None = None
            last = 0
            for time, payload in events:
                if page is None or page.room() < len(payload) + 16:
                    if page is not None:
                        parts.append(page.bytes())
                    page, last = PageWriter(time), time
                page.event(payload, time - last)
                last = time
            if page is not None:
                parts.append(page.bytes())
            out[cpu] = b"".join(parts)
        return out

    def read(self, symbols: Any = None, hints: Any = None) -> Recording:
        """The recording, read."""
        return read_recording(self, self.blobs.get, symbols or Names([]), hints)


@dataclass(frozen=True)
class Symbol:
    """A symbol as the tests know it."""

    address: int
    size: int
    name: str


class Names:
    """Symbols by address, from (address, size, name) rows."""

    def __init__(self, rows: Iterable[tuple[int, int, str]]) -> None:
        self.rows = [Symbol(*row) for row in rows]

    def at(self, address: int) -> Symbol | None:
        """The symbol around an address."""
        for symbol in self.rows:
            if symbol.address <= address < symbol.address + symbol.size:
                return symbol
        return None

    def named(self, name: str) -> list[Symbol]:
        """All symbols of a name."""
        return [s for s in self.rows if s.name == name]


class Hints:
    """What the code says, from tables: call targets by return address, callees, untraced ones."""

    def __init__(
        self,
        targets: Mapping[int, int],
        callees: Mapping[int, Iterable[int]],
        untraced: Iterable[int] = (),
        once: Iterable[int] = (),
    ) -> None:
        self.targets, self.called = dict(targets), {k: set(v) for k, v in callees.items()}
        self.untraced, self.once = set(untraced), set(once)

    def direct_target(self, site: int, /) -> int | None:
        """See CodeHints."""
        return self.targets.get(site)

    def callees(self, function: int, /) -> set[int] | None:
        """See CodeHints."""
        return self.called.get(function)

    def traceable(self, function: int, /) -> bool | None:
        """See CodeHints."""
        return function not in self.untraced

    def repeats(self, _function: int, site: int, /) -> bool | None:
        """See CodeHints; the tables name the sites outside of loops."""
        return site not in self.once


@dataclass
class Kept:
    """A small real recording kept under data/record."""

    story: Story
    pages: dict[int, bytes]
    names: Names
    hints: Hints
    text: list[str]  # the kernel's own rendering of the same events

    def read(self, hints: bool = True) -> Recording:
        """The recording, read."""
        story = self.story

        class Round:
            pages = self.pages
            lost: Mapping[int, int] = {}
            formats: tuple[str, ...] = ()
            tasks: tuple[Any, ...] = ()
            status = story.status
            tails = story.tails
            extra = story.extra

        return read_recording(
            Round(), story.blobs.get, self.names, self.hints if hints else None
        )


def kept(name: str) -> Kept:
    """The kept recording of that name (see data/record/remake.py)."""
    with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
        files = {i.filename: archive.read(i) for i in archive.infolist()}
    facts = json.loads(files["facts.json"])
    story = Story(blobs={k[5:]: v for k, v in files.items() if k.startswith("blob/")})
    story.status, story.tails, story.extra = facts["status"], facts["tails"], facts["extra"]
    return Kept(
        story,
        {int(k[3:]): v for k, v in files.items() if k.startswith("cpu")},
        Names([(a, s, n) for a, s, n in facts["symbols"]]),
        Hints(
            {int(k): v for k, v in facts["targets"].items()},
            {int(k): v for k, v in facts["callees"].items()},
            facts["untraced"],
        ),
        files["trace.txt"].decode().splitlines() if "trace.txt" in files else [],
    )
