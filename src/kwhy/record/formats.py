"""Event format files (tracefs ``events/*/*/format``) and the columns of one event type.

The format file names each field's C declaration, offset, size and sign; it differs between
kernels, so nothing about a field's place is assumed but the four common fields, which have had
the same place since 2009 and are checked.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kwhy.errors import InputError
from kwhy.record.pages import AnyArray, Events

# enum trace_flag_type, include/linux/trace_events.h (5.10: include/linux/trace_events.h too).
IRQS_OFF = 0x01
#: 5.10 to 6.12: "irqs off not supported"; since 6.13 (commit 26baa1f1c4bd, "tracing: Add
#: TRACE_FLAG_NEED_RESCHED_LAZY") "lazy reschedule wanted". kwhy reads neither meaning.
LAZY_OR_NOSUPPORT = 0x02
NEED_RESCHED = 0x04
HARDIRQ = 0x08
SOFTIRQ = 0x10  # serving a softirq (until 5.11 also: bottom halves disabled, see trace.c)
PREEMPT_RESCHED = 0x20
NMI = 0x40
BH_OFF = 0x80  # since 5.18 (commit 289e7b0f7eb4, "tracing: Account bottom half disabled sections")

#: Flags that say the event did not run in the task's own context.
IN_INTERRUPT = HARDIRQ | SOFTIRQ | NMI

_FIELD = re.compile(
    r"field:(?P<decl>[^;\n]{1,400});\s*offset:(?P<offset>\d{1,9});\s*size:(?P<size>\d{1,9});"
    r"(?:\s*signed:(?P<signed>[01]);)?"
)
_DECL = re.compile(r"^(?P<type>.*?)\s*\b(?P<name>\w+)(?P<array>(?:\[[^\]]*\])*)$")
_COMMON = {"common_type": (0, 2), "common_flags": (2, 1), "common_preempt_count": (3, 1),
           "common_pid": (4, 4)}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: `offset` and `size` in bytes from the start of the payload."""

    name: str
    type: str
    offset: int
    size: int
    signed: bool
    count: int = 1  # elements, for arrays of numbers
    dynamic: str = ""  # "", "__data_loc" or "__rel_loc"
    text: bool = False  # char array


@dataclass(frozen=True, slots=True)
class Format:
    """One event type as its format file describes it."""

    name: str
    id: int
    fields: dict[str, Field] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the fixed part."""
        return max((f.offset + f.size for f in self.fields.values()), default=8)


def parse_format(text: str | bytes) -> Format:
    """The event type that a format file describes. Raises InputError when it is not one."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    name = re.search(r"^name:\s*(\S{1,200})", text, re.M)
    number = re.search(r"^ID:\s*(\d{1,5})\s*$", text, re.M)
    if not name or not number:
        raise InputError("an event format file of the recording has no name or ID")
    fields: dict[str, Field] = {}
    for match in _FIELD.finditer(text.partition("print fmt:")[0]):
        made = _field(match)
        fields[made.name] = made
    for common, place in _COMMON.items():
        if common not in fields or (fields[common].offset, fields[common].size) != place:
            raise InputError(f"event {name[1]}: {common} is not where every known kernel has it")
    return Format(name[1], int(number[1]), fields)


def _field(match: re.Match[str]) -> Field:
    decl = match["decl"].strip()
    offset, size = int(match["offset"]), int(match["size"])
    if offset + size > 1 << 16:
        raise InputError(f"event field '{decl}' is too large")
    dynamic = ""
    for word in ("__data_loc", "__rel_loc"):
        if decl.startswith(word + " "):
            dynamic, decl = word, decl[len(word) + 1 :]
            break
    if dynamic:
        # "char[] filename"
        kind, _, name = decl.rpartition(" ")
        return Field(name, kind, offset, size, False, 1, dynamic, "char" in kind)
    parts = _DECL.match(decl)
    if not parts:
        return Field(decl, "", offset, size, False)
    name, kind, array = parts["name"], parts["type"], parts["array"]
    signed = match["signed"] == "1" if match["signed"] else not kind.startswith(("u", "__u"))
    text = bool(array) and kind.split()[-1:] == ["char"]
    count = 1
    if array and not text:
        # The size is certain, the text between the brackets (an expression, sometimes) is not.
        element = next((n for n, t in ((8, "long"), (8, "64"), (4, "int"), (4, "32"), (2, "short"),
                        (2, "16"), (1, "char"), (1, "8")) if t in kind), 0)
        count = size // element if element and size % element == 0 else 1
    return Field(name, kind, offset, size, signed, max(count, 1), "", text)


def record_dtype(fmt: Format, names: list[str] | None = None) -> np.dtype[Any]:
    """A numpy record of the named fields (all fixed and dynamic ones when None) at their offsets.

    Dynamic fields appear as their u32 locator: see `dynamic_bytes`. Fields without a size
    (trailing arrays) are left out.
    """
    chosen = [fmt.fields[n] for n in (fmt.fields if names is None else names)]
    chosen = [f for f in chosen if f.size]
    kinds: list[Any] = []
    for f in chosen:
        element = f.size // f.count
        if f.text or element not in (1, 2, 4, 8):
            kinds.append(f"S{f.size}")
        else:
            scalar = f"<{'i' if f.signed else 'u'}{element}"
            kinds.append((scalar, (f.count,)) if f.count > 1 else scalar)
    return np.dtype(
        {
            "names": [f.name for f in chosen],
            "formats": kinds,
            "offsets": [f.offset for f in chosen],
            "itemsize": fmt.size,
        }
    )


def of_type(events: Events, fmt: Format) -> npt.NDArray[np.int64]:
    """Row numbers of the events of this type whose payload is complete."""
    rows = np.flatnonzero(events.type == fmt.id)
    whole = events.size[rows] >= fmt.size
    return rows if whole.all() else rows[whole]


def columns(
    events: Events, fmt: Format, rows: npt.NDArray[np.int64], names: list[str] | None = None
) -> AnyArray:
    """The fields of `rows` (as `of_type` gives them) as one structured array.

    Rows whose payload is shorter than the format are an error of the caller.
    """
    dtype = record_dtype(fmt, names)
    starts = events.offset[rows]
    # Every payload begins on a 4-byte boundary: view the buffer as overlapping records.
    count = (len(events.data) - dtype.itemsize) // 4 + 1
    if count <= 0 or not len(rows):
        return np.zeros(0, dtype)
    windows = np.ndarray((count,), np.dtype(f"V{dtype.itemsize}"), events.data.data, 0, (4,))
    return windows[starts // 4].view(dtype)


def u64_column(
    events: Events, fmt: Format, rows: npt.NDArray[np.int64], name: str
) -> npt.NDArray[np.uint64]:
    """One 8-byte field of `rows`; the fast way, when only one or two fields are wanted."""
    f = fmt.fields[name]
    words = events.data[: len(events.data) // 4 * 4].view("<u4")
    if f.size != 8 or f.offset % 4:
        return columns(events, fmt, rows, [name])[name].astype(np.uint64)
    at = events.offset[rows] // 4 + f.offset // 4
    pair = np.empty((len(rows), 2), "<u4")
    pair[:, 0] = words.take(at)
    pair[:, 1] = words.take(at + 1)
    return pair.reshape(-1).view("<u8")


def dynamic_bytes(events: Events, fmt: Format, row: int, name: str) -> bytes:
    """The bytes of a dynamic field of one event, without the final NUL of strings.

    ``__data_loc``: length << 16 | offset from the payload's start; ``__rel_loc``: offset from
    the end of the locator (commit 05770dd0ad11, "tracing: Support __rel_loc relative dynamic
    data location attribute", 5.17). Bounded by the event; b"" when it points outside.
    """
    f = fmt.fields[name]
    start, size = int(events.offset[row]), int(events.size[row])
    if not f.dynamic:
        end = min(f.offset + f.size, size)
        return events.data[start + f.offset : start + end].tobytes().partition(b"\0")[0]
    if f.offset + 4 > size:
        return b""
    at = start + f.offset
    locator = int.from_bytes(events.data[at : at + 4].tobytes(), "little")
    length, offset = locator >> 16, locator & 0xFFFF
    if f.dynamic == "__rel_loc":
        offset += f.offset + f.size
    if offset + length > size:
        return b""
    value = events.data[start + offset : start + offset + length].tobytes()
    return value.rstrip(b"\0") if f.text else value
