"""Kernel memory held in 4 KiB pages: what was fetched once is never fetched again."""

from collections.abc import Iterable

from kwhy.case.evidence import PAGE, MissingMemory

TOP = 1 << 64


def pages_of(ranges: Iterable[tuple[int, int]]) -> list[int]:
    """Sorted addresses of the pages that ``(address, size)`` ranges touch, each once."""
    wanted: set[int] = set()
    for address, size in ranges:
        if size > 0 and 0 <= address < TOP:
            end = min(address + size, TOP)
            wanted.update(range(address & -PAGE, end, PAGE))
    return sorted(wanted)


def runs(pages: list[int], longest: int = 256) -> list[tuple[int, int]]:
    """Sorted page addresses joined to ``(address, size)`` runs of at most ``longest`` pages."""
    out: list[tuple[int, int]] = []
    for page in pages:
        if out and out[-1][0] + out[-1][1] == page and out[-1][1] < longest * PAGE:
            out[-1] = (out[-1][0], out[-1][1] + PAGE)
        else:
            out.append((page, PAGE))
    return out


def assemble(pages: dict[int, bytes], address: int, size: int) -> bytes:
    """``size`` bytes at ``address`` from a page store; raises MissingMemory for the rest."""
    if size < 0 or not 0 <= address <= TOP - size:
        raise MissingMemory(address, "the range is not a valid one")
    if size == 0:
        return b""
    first = address & -PAGE
    if address + size <= first + PAGE:
        page = pages.get(first)
        if page is None:
            raise MissingMemory(address)
        return page[address - first : address - first + size]
    parts = []
    for at in range(first, address + size, PAGE):
        page = pages.get(at)
        if page is None:
            raise MissingMemory(max(at, address))
        parts.append(page)
    return b"".join(parts)[address - first : address - first + size]
