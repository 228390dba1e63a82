"""A picture at each hit of a kernel function: read by the kernel itself, nothing is stopped.

A kprobe event copies the words of the picture when the function is entered. Put into the memory
that the picture was taken from, they give its values at that moment. The places are those of the
picture before: what a pointer leads to that changed meanwhile is not among them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kwhy.case.evidence import PAGE
from kwhy.emulate.picture import Picture, Sight, read_leaf
from kwhy.record.formats import columns, of_type, parse_format
from kwhy.record.pages import decode_pages, page_layout

WORD = 8
MAX_ARGUMENTS = 128
"""Of one event: MAX_TRACE_ARGS, kernel/trace/trace_probe.h."""
MAX_ARRAY = 64
"""Elements of one argument: MAX_ARRAY_LEN, kernel/trace/trace_probe.h."""
MAX_WORDS = 370
"""In one event: MAX_PROBE_EVENT_SIZE is 3072 bytes (kernel/trace/trace_probe.h)."""
MAX_HITS = 1000
PROBE = "hit"

Run = tuple[int, int]
"""Words that follow each other: the address of the first, and how many there are."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is fetched at a hit, the values that it gives, and those that did not fit."""

    runs: list[Run] = field(default_factory=list)
    leaves: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def definition(self, function: str) -> str:
        """The probe event, as kprobe_events takes it."""
        arguments = (
            f"@{address:#x}:x64" + (f"[{count}]" if count > 1 else "")
            for address, count in self.runs
        )
        return " ".join([f"p:{PROBE} {function}", *arguments])

    def addresses(self) -> list[int]:
        """Of all words, in the order of the event's values."""
        return [start + WORD * i for start, count in self.runs for i in range(count)]


@dataclass(frozen=True, slots=True)
class Hit:
    """One entry of the function: when (ns, monotonic), where, who, and the words fetched."""

    time: int
    cpu: int
    tid: int
    words: tuple[int, ...]


def plan(sight: Sight) -> Plan:
    """As much of the picture as one event can hold, the first values first."""
    wanted: set[int] = set()
    leaves: dict[str, Any] = {}
    left_out: list[str] = []
    runs: list[Run] = []
    for path in sight.values:
        leaf = sight.leaves.get(path)
        words = _words(leaf) if leaf is not None and _readable(sight.values[path]) else []
        more = wanted.union(words)
        tried = _runs(more) if words and len(more) <= MAX_WORDS else []
        if tried and len(tried) <= MAX_ARGUMENTS:
            wanted, runs = more, tried
            leaves[path] = leaf
        else:
            left_out.append(path)
    return Plan(runs, leaves, left_out)


def _readable(text: str) -> bool:
    return not text.startswith(("unreadable at", "not shown"))


def _words(leaf: Any) -> list[int]:
    """Addresses of the aligned words that hold a value; none when it is not in memory."""
    import drgn

    if leaf.address_ is None:
        return []
    first = leaf.address_ * 8 + (leaf.bit_offset_ or 0)
    bits = leaf.bit_field_size_ or drgn.sizeof(leaf.type_) * 8
    start, end = first // 8 & -WORD, (first + bits + 7) // 8
    return list(range(start, end, WORD))


def _runs(words: Iterable[int]) -> list[Run]:
    runs: list[Run] = []
    for word in sorted(words):
        if runs and runs[-1][1] < MAX_ARRAY and word == runs[-1][0] + WORD * runs[-1][1]:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((word, 1))
    return runs


def read_hits(
    pages: Mapping[int, bytes], header_page: bytes | None, format_text: str, words: int
) -> list[Hit]:
    """All hits in raw ring-buffer pages, in order of time; each with as many words as planned."""
    events = decode_pages(pages, page_layout(header_page))
    fmt = parse_format(format_text)
    rows = of_type(events, fmt)
    names = [name for name in fmt.fields if name.startswith("arg")]
    values = columns(events, fmt, rows, names)
    hits = []
    for row, value in zip(rows.tolist(), values, strict=True):
        fetched = [int(word) for name in names for word in value[name].reshape(-1)]
        if len(fetched) == words:
            time, cpu, tid = (int(each[row]) for each in (events.time, events.cpu, events.tid))
            hits.append(Hit(time, cpu, tid, tuple(fetched)))
    return sorted(hits, key=lambda hit: hit.time)


def at_hits(memory: dict[int, bytes], planned: Plan, hits: Sequence[Hit]) -> list[Picture]:
    """The values at each hit. ``memory`` (pages, as the picture read them) is overwritten."""
    addresses = planned.addresses()
    last: tuple[int, ...] | None = None
    pictures: list[Picture] = []
    for hit in hits:
        if hit.words != last:
            for address, word in zip(addresses, hit.words, strict=True):
                _put(memory, address, word)
            seen = {path: read_leaf(path, leaf) for path, leaf in planned.leaves.items()}
        pictures.append(seen)
        last = hit.words
    return pictures


def remarks(function: str, planned: Plan, hits: Sequence[Hit], lost: int) -> list[str]:
    """What the hits do not tell; ``lost``: how many the buffer had no room for."""
    notes = [] if hits else [f"the command never came to {function}"]
    if len(hits) > MAX_HITS:
        notes.append(f"only the first {MAX_HITS} of {len(hits)} hits are told")
    if lost:
        notes.append(f"{lost} hits were lost: they came faster than they could be read")
    if planned.left_out:
        few = ", ".join(planned.left_out[:4]) + (", …" if len(planned.left_out) > 4 else "")
        total = len(planned.left_out) + len(planned.leaves)
        notes.append(
            f"{len(planned.left_out)} of {total} values were not read at the hits, which have no "
            f"room for them or cannot reach them: {few}"
        )
    return notes


def _put(memory: dict[int, bytes], address: int, word: int) -> None:
    page, offset = address & -PAGE, address % PAGE
    old = memory[page]
    memory[page] = old[:offset] + word.to_bytes(WORD, "little") + old[offset + WORD :]
