"""x86-64 page tables, walked in software (Intel SDM volume 3, 4.5)."""

from collections.abc import Callable, Mapping

from kwhy.arch import Mapped

_PRESENT, _WRITABLE, _USER, _WRITE_THROUGH, _NO_CACHE, _LARGE = 1, 2, 4, 8, 16, 128
_FRAME = ((1 << 52) - 1) & ~0xFFF
_ENTRY = 8


def levels(vmcoreinfo: Mapping[str, str]) -> int:
    """4, or 5 where the processor and the kernel can (arch/x86/kernel/vmcore_info_64.c)."""
    return 5 if vmcoreinfo.get("NUMBER(pgtable_l5_enabled)") == "1" else 4


def walk(
    read_physical: Callable[[int, int], bytes], root: int, levels: int, address: int
) -> Mapped | None:
    """The mapping of a virtual address under the top-level table at physical ``root``.

    ``levels`` is 4 or 5. None when it is not present. Whatever ``read_physical`` raises passes.
    """
    table, writable, user = root & _FRAME, True, True
    for level in range(levels - 1, -1, -1):
        shift = 12 + 9 * level
        at = table + (address >> shift & 511) * _ENTRY
        entry = int.from_bytes(read_physical(at, _ENTRY), "little")
        if not entry & _PRESENT:
            return None
        writable = writable and bool(entry & _WRITABLE)
        user = user and bool(entry & _USER)
        if level == 0 or (level < 3 and entry & _LARGE):
            inside = (1 << shift) - 1
            physical = (entry & _FRAME & ~inside) | (address & inside)
            # PCD and PWT together pick "uncached" in Linux's PAT (arch/x86/mm/pat/memtype.c).
            return Mapped(physical, writable, user, entry & 0x18 == _NO_CACHE | _WRITE_THROUGH)
        table = entry & _FRAME
    return None
