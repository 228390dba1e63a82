"""Which ``ud2`` is a warning and which the end, by the kernel's bug table (lib/bug.c)."""

from kwhy.case.evidence import MissingMemory
from kwhy.kernel.model import Kernel

_WARNING = 1  # BUGFLAG_WARNING, include/asm-generic/bug.h


def is_warning(kernel: Kernel, address: int) -> bool:
    """Whether the instruction at ``address`` is a WARN; False also when nothing is known of it."""
    types = kernel.types
    kind = types.named("struct bug_entry")
    place = types.field(kind, "bug_addr_disp") if kind else None
    flags = types.field(kind, "flags") if kind else None
    size = types.size(kind) if kind else None
    if not size or place is None or flags is None:
        return False
    start, stop = _table(kernel, address, size)
    try:
        table = kernel.evidence.read(start, stop - start)
    except MissingMemory:
        return False
    for at in range(0, len(table) - size + 1, size):
        relative = int.from_bytes(table[at + place.offset : at + place.offset + 4], "little",
                                  signed=True)  # fmt: skip
        if start + at + place.offset + relative == address:
            raw = table[at + flags.offset : at + flags.offset + flags.size]
            return bool(int.from_bytes(raw, "little") & _WARNING)
    return False


def _table(kernel: Kernel, address: int, size: int) -> tuple[int, int]:
    """The [start, stop) of the bug table that knows about ``address``."""
    if kernel.symbols.in_image(address):
        start = kernel.symbols.address("__start___bug_table") or 0
        stop = kernel.symbols.address("__stop___bug_table") or 0
        return start, max(start, stop)
    module = kernel.module_at(address)
    kind = kernel.types.named("struct module")
    if module is None or kind is None:
        return 0, 0
    values = []
    for name in ("bug_table", "num_bugs"):
        field = kernel.types.field(kind, name)
        if field is None:
            return 0, 0
        data = kernel.evidence.read(module.address + field.offset, field.size)
        values.append(int.from_bytes(data, "little"))
    return values[0], values[0] + size * min(values[1], 100_000)
