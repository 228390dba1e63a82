"""Evidence from a live target: fetched through a link when asked for, kept for the case."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from kwhy.case import diskcache
from kwhy.case.evidence import PAGE, Facts
from kwhy.case.memory import assemble, pages_of, runs
from kwhy.case.remembering import Remembering
from kwhy.errors import FeatureError

BATCH_PAGES = 4096  # 16 MiB in one request
_IMMUTABLE = frozenset({"btf/vmlinux"})
"""Blobs that are the same on every boot of a build, kept on the desk's disk by build-id."""


class Source(Protocol):
    """The part of a ``kwhy.link`` Link that is used here."""

    @property
    def hello(self) -> dict[str, Any]: ...

    def blob(self, name: str) -> bytes | None: ...

    def read_memory(self, ranges: list[tuple[int, int]]) -> list[bytes | None]: ...


@dataclass(frozen=True, slots=True)
class Moment:
    """Pages of memory by address, and the addresses of those that could not be read."""

    pages: dict[int, bytes]
    missing: frozenset[int]


class LiveEvidence(Remembering):
    """Reads through ``link``; remembers everything, so that ``save`` writes what was used.

    Memory that the target refused to give stays missing, also later: an explanation must not depend
    on when it asked.
    """

    def __init__(self, link: Source, facts: Facts | None = None) -> None:
        super().__init__(facts or Facts())
        self.link = link
        hello = link.hello
        if not self.facts.hello:
            self.facts.hello = hello
        kernel = hello.get("kernel")
        identity = kernel if isinstance(kernel, dict) else hello
        self.facts.release = self.facts.release or str(identity.get("release") or "")
        self.facts.build_id = self.facts.build_id or str(identity.get("build_id") or "")
        machine = str(identity.get("arch") or identity.get("machine") or "x86_64")
        self.facts.arch = machine
        self._missing: set[int] = set()
        self._still = False
        self._no_memory = False

    def read(self, address: int, size: int) -> bytes:
        """Kernel memory, fetched in 4 KiB pages; raises MissingMemory."""
        self.prefetch([(address, size)])
        return assemble(self.pages, address, size)

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch what is not here yet, neighbouring pages joined, in as few requests as possible."""
        wanted = [p for p in pages_of(ranges) if p not in self.pages and p not in self._missing]
        if self._no_memory:
            return
        for start in range(0, len(wanted), BATCH_PAGES):
            self._fetch(runs(wanted[start : start + BATCH_PAGES]))

    def _fetch(self, wanted: list[tuple[int, int]]) -> None:
        if not wanted:
            return
        try:
            pieces = self.link.read_memory(wanted)
        except FeatureError:
            self._no_memory = True
            return
        broken: list[int] = []
        for (address, size), found in zip(wanted, pieces, strict=True):
            piece = found or b""
            for offset in range(0, size, PAGE):
                page = piece[offset : offset + PAGE]
                if len(page) == PAGE:
                    self.pages[address + offset] = page
                elif size == PAGE:
                    self._missing.add(address)
                else:
                    broken.append(address + offset)
        if broken:  # a run ends at its first hole: the pages behind it may be there
            self._fetch([(page, PAGE) for page in broken])

    def reread(self, keep: Callable[[int], bool]) -> None:
        """Read all pages of memory again that were read before, except those to ``keep``.

        It is one request: what the pages say of each other is hardly ever torn.
        """
        if self._still:
            return
        old = [page for page in tuple(self.pages) if not keep(page)]  # keep may read
        for page in old:
            del self.pages[page]
        self._missing.clear()
        self.prefetch([(page, PAGE) for page in old])

    def moment(self) -> Moment:
        """The memory as it was read."""
        return Moment(dict(self.pages), frozenset(self._missing))

    def go_back(self, moment: Moment | None) -> None:
        """To the memory of a moment: it is not read again; None: to the target as it is now."""
        self._still = moment is not None
        if moment is not None:
            self.pages.update(moment.pages)
            self._missing.update(moment.missing - self.pages.keys())

    def _blob(self, name: str) -> bytes | None:
        keep = name in _IMMUTABLE and bool(self.facts.build_id)
        if keep and (data := diskcache.load(self.facts.build_id, name)) is not None:
            return data
        try:
            data = self.link.blob(name)
        except FeatureError:  # the target may not give it
            return None
        if keep and data is not None:
            diskcache.store(self.facts.build_id, name, data)
        return data
