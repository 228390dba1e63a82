"""What every run on one kernel shares: how its memory is found, and how its code is prepared."""

import functools

from kwhy.arch import Mapped
from kwhy.arch import x86_64_emulation as arch
from kwhy.case.evidence import PAGE, Evidence, MissingMemory
from kwhy.emulate import limits
from kwhy.emulate.memory import Page
from kwhy.errors import KwhyError
from kwhy.kernel.model import Kernel
from kwhy.kernel.pagetable import PageTables
from kwhy.kernel.symbols import Symbols


class Unfetched(KwhyError):
    """A page would have to be fetched, and this process may not: another one shares its link."""


class Ground:
    """Kernel pages of ``kernel``, text prepared for offline execution."""

    def __init__(self, kernel: Kernel, memory: Evidence | None = None) -> None:
        self.kernel = kernel
        self.memory = memory or kernel.evidence
        """Another reading of the same kernel's memory than the one it was opened with."""
        self.sealed = False
        """Whether nothing more may be read: then Unfetched is raised."""
        self._tables = PageTables(kernel, self._fetch)

    # -- pages -------------------------------------------------------------------------------------

    def page(self, page: int) -> Page:
        """A page of the kernel's half. Raises MissingMemory for holes and device memory."""
        kernel = self.kernel
        self._ask(page)
        if kernel.symbols.in_image(page):
            return Page(self._prepared(page, self.memory.read(page, PAGE)))
        if not self._tables.maps(page):
            mapped = self._kernel_mapping(page)
            if mapped is not None and mapped.device:
                raise MissingMemory(page, "it is device memory")
        data = self.memory.read(page, PAGE)
        return Page(self._prepared(page, data) if kernel.module_at(page) else data)

    def user_page(self, page: int, mapped: Mapped) -> Page:
        """A page of user memory, through the kernel's direct map."""
        return Page(self._tables.physical(mapped.physical & -PAGE, PAGE), mapped.writable)

    def user_mapping(self, table: int, address: int) -> Mapped | None:
        """How the page table at kernel address ``table`` maps a user address, None if not."""
        return self._tables.walk(table - self._tables.base, address)

    def _fetch(self, address: int, size: int) -> bytes:
        self._ask(address)
        return self.memory.read(address, size)

    def _ask(self, address: int) -> None:
        if self.sealed:
            raise Unfetched(f"{address:#x} would have to be fetched")

    def _kernel_mapping(self, page: int) -> Mapped | None:
        """By the kernel's own page tables; they also tell holes, which /proc/kcore shows as zeros.

        None when the tables' place is not known. Raises MissingMemory for a hole.
        """
        root = self.kernel.symbols.address("init_top_pgt")
        slide = self._tables.vmcoreinfo.get("NUMBER(phys_base)")
        if root is None or slide is None:
            return None
        mapped = self._tables.walk(root - arch.IMAGE_BASE + int(slide), page)
        if mapped is None:
            raise MissingMemory(page, "nothing is mapped there")
        return mapped

    # -- code --------------------------------------------------------------------------------------

    def _prepared(self, page: int, data: bytes) -> bytes:
        """A page of text without calls to the tracer, and with traps where a run has to stop."""
        code = bytearray(data)
        symbols = self.kernel.symbols
        for start in symbols.code_starts(page, page + PAGE):
            at = start - page
            for site in (at, at + 4):
                nop = arch.tracer_call(bytes(code[site : site + 5]), page + site, self.name)
                if nop is not None and site + len(nop) <= PAGE:
                    code[site : site + len(nop)] = nop
                    break
            if start in self.planted:
                code[at : at + len(arch.TRAP)] = arch.TRAP
        return bytes(code)

    def name(self, address: int) -> str | None:
        """Of the symbol around an address."""
        symbol = self.kernel.symbols.at(address)
        return symbol.name if symbol else None

    @property
    def planted(self) -> dict[int, str]:
        """Entries of the functions that are not to run, with their names."""
        return _planted(self.kernel.symbols)


@functools.lru_cache(maxsize=2)
def _planted(symbols: Symbols) -> dict[int, str]:
    names = [*limits.STOPS, *limits.SKIPS, *limits.YIELDS, *limits.CLOCKS, *limits.WAKES]
    return {
        symbol.address: name
        for name in names
        for symbol in symbols.named(name, modules=False)
        if symbol.code
    }
