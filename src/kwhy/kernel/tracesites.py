"""Where the function tracer patches: its own records in kernel memory.

A function's first bytes do not always tell: one that the tracer leaves alone may begin with the
same nop, put there by a static branch or an alternative (pgd_none(), native_sched_clock()).
"""

import numpy as np

from kwhy.case.evidence import Evidence
from kwhy.kernel.types import Types

MAX_PAGES, MAX_RECORDS = 20_000, 1 << 20


def read_trace_sites(evidence: Evidence, types: Types, head: int) -> frozenset[int]:
    """Addresses of all patch sites: of the five bytes, not of the functions.

    ``head`` is the address of ``ftrace_pages_start``, the list of struct ftrace_page, each with an
    array of struct dyn_ftrace (kernel/trace/ftrace.c, include/linux/ftrace.h). Raises MissingMemory
    or LookupError when memory or types do not give them.
    """
    page = types.named("struct ftrace_page")
    record = types.named("struct dyn_ftrace")
    if page is None or record is None:
        raise LookupError("no type information for struct ftrace_page")
    fields = [types.field(page, name) for name in ("next", "records", "index")]
    ip, step = types.field(record, "ip"), types.size(record)
    if None in fields or ip is None or not step:
        raise LookupError("no layout of struct ftrace_page")

    arrays: list[tuple[int, int]] = []
    at, seen, total = _word(evidence, head), set[int](), 0
    while at and at not in seen and len(seen) < MAX_PAGES:
        seen.add(at)
        at, records, count = (
            int.from_bytes(evidence.read(at + field.offset, field.size), "little")
            for field in fields
            if field is not None
        )
        total += count
        if total > MAX_RECORDS:
            raise LookupError("the function tracer's records make no sense")
        if count:
            arrays.append((records, count))
    evidence.prefetch([(records, count * step) for records, count in arrays])
    found: set[int] = set()
    for records, count in arrays:
        rows = np.frombuffer(evidence.read(records, count * step), np.uint8).reshape(count, step)
        found.update(rows[:, ip.offset : ip.offset + 8].copy().view("<u8").ravel().tolist())
    return frozenset(found)


def _word(evidence: Evidence, address: int) -> int:
    return int.from_bytes(evidence.read(address, 8), "little")
