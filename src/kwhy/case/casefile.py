"""Reading a case: safe whatever the file contains.

Sizes are checked before anything is unpacked, nothing of the file becomes a path or code, and every
kind of damage is one InputError.
"""

import itertools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import zstandard

from kwhy.case import manifest as m
from kwhy.case.evidence import JSON, PAGE, Round
from kwhy.case.memory import assemble
from kwhy.case.remembering import Remembering
from kwhy.errors import InputError

_EOCD = struct.Struct("<4s4H2IH")
_ODDITIES = (
    zipfile.BadZipFile, zlib.error, zstandard.ZstdError, struct.error, OSError, EOFError,
    NotImplementedError, RuntimeError, ValueError, KeyError, OverflowError, MemoryError,
)  # fmt: skip


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Any way in which a file can be broken becomes one InputError."""
    try:
        yield
    except m.Damaged as error:
        raise InputError(f"{path}: damaged case file: {error}") from error
    except _ODDITIES as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: damaged case file: {text}") from error


class CaseFile(Remembering):
    """A saved case as evidence.  Answers and blobs it lacks are computed, if they can be."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: there is no such case file")
        with _told(path):
            _check_directory(path)
            self._archive = zipfile.ZipFile(path)
            self._infos = _check_entries(self._archive, path.stat().st_size)
            self.manifest = m.decode(self._json("manifest.json", m.MAX_MANIFEST))
            self._check_sizes()
            self.facts = self.manifest.facts
            answers = m.parse_json(self._json("answers.json", m.MAX_ANSWERS), "answers.json")
            if not isinstance(answers, dict):
                raise m.Damaged("answers.json is not an object")
            self.answers: dict[str, JSON] = answers
        self._blob_entries = {blob.name: blob for blob in self.manifest.blobs}

    @cached_property
    def _index(self) -> tuple[int, ...]:
        count = self.manifest.memory_pages
        with _told(self.path):
            addresses = struct.unpack(f"<{count}Q", self._packed("memory/index", 8 * count))
            for before, after in itertools.pairwise(addresses):
                if before >= after:
                    raise m.Damaged("memory/index is not sorted")
            if any(address % PAGE for address in addresses):
                raise m.Damaged("memory/index has an address that is no page's")
        return addresses

    def _load_pages(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        count = self.manifest.memory_pages
        with _told(self.path):
            data = self._packed("memory/pages", PAGE * count)
        for number, address in enumerate(self._index):
            self.pages[address] = data[number * PAGE : (number + 1) * PAGE]

    _loaded = False

    def read(self, address: int, size: int) -> bytes:
        """Memory as it was when the case was made; raises MissingMemory."""
        self._load_pages()
        return assemble(self.pages, address, size)

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Nothing to do."""

    def blob(self, name: str) -> bytes | None:
        """A blob of the case, None if the target had none or nobody asked for it."""
        if name not in self.blobs:
            place = self._blob_entries.get(name)
            if place is None:
                return None
            with _told(self.path):
                self.blobs[name] = (
                    None if place.entry is None else self._packed(place.entry, place.size)
                )
        return self.blobs[name]

    def derived(self, name: str, compute: Callable[[], bytes | None]) -> bytes | None:
        """The saved fact; ``compute`` only if the case has none."""
        if name in self._blob_entries and (data := self.blob(name)) is not None:
            return data
        return super().derived(name, compute)

    @property
    def rounds(self) -> list[Round]:
        """The recordings, their pages unpacked at first use."""
        if self._rounds is None:
            self._rounds = []
            for one, places in zip(self.manifest.rounds, self.manifest.round_pages, strict=True):
                with _told(self.path):
                    one.pages = {p.cpu: self._packed(p.entry, p.size) for p in places}
                self._rounds.append(one)
        return self._rounds

    @rounds.setter
    def rounds(self, value: list[Round]) -> None:
        pass

    _rounds: list[Round] | None = None

    def check(self) -> None:
        """Unpack everything once; raises InputError at the first damage."""
        self._load_pages()
        for name in self._blob_entries:
            self.blob(name)
        _ = self.rounds
        with _told(self.path):
            bad = self._archive.testzip()
            if bad is not None:
                raise m.Damaged(f"the checksum of {bad} is wrong")

    def save(self, path: Path) -> None:
        """Write the case again, with what was added since."""
        self.check()
        super().save(path)

    # -- bounded reading ---------------------------------------------------------------------------

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = self._infos.get(name)
        if info is None:
            raise m.Damaged(f"the entry {name} is missing")
        return info

    def _json(self, name: str, limit: int) -> bytes:
        info = self._info(name)
        if info.file_size > limit:
            raise m.Damaged(f"{name} is too large")
        with self._archive.open(info) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise m.Damaged(f"{name} is too large")
        return data

    def _packed(self, name: str, size: int) -> bytes:
        """A zstd entry of exactly ``size`` bytes, never unpacking more than that."""
        info = self._info(name)
        _check_ratio(name, size, info.file_size)
        with self._archive.open(info) as file:
            stored = file.read(info.file_size + 1)
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(stored)
        data = reader.read(size + 1)
        if len(data) != size:
            raise m.Damaged(f"{name} does not unpack to its {size} bytes")
        return data

    def _check_sizes(self) -> None:
        sizes = [blob.size for blob in self.manifest.blobs]
        sizes += [place.size for places in self.manifest.round_pages for place in places]
        sizes.append(self.manifest.memory_pages * (PAGE + 8))
        if sum(sizes) > m.MAX_TOTAL:
            raise m.Damaged(f"it claims to hold {sum(sizes)} bytes, more than {m.MAX_TOTAL}")


def _check_ratio(name: str, size: int, stored: int) -> None:
    if size > m.MAX_ENTRY or (size > m.FREE_RATIO_SIZE and size > m.MAX_RATIO * stored):
        raise m.Damaged(f"{name} claims to unpack {stored} bytes to {size}")


def _check_directory(path: Path) -> None:
    """The end-of-directory record, before zipfile reads a directory of any size it names.

    (APPNOTE.TXT 4.3.16.)  kwhy writes no ZIP64, no comment and no second disk.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _EOCD.size - 20))
        tail = file.read()
    if len(tail) < _EOCD.size:
        raise m.Damaged("it is no zip file (too short)")
    signature, _disk, _start, _here, count, length, offset, comment = _EOCD.unpack(
        tail[-_EOCD.size :]
    )
    if signature != b"PK\x05\x06" or comment:
        raise m.Damaged("it is no zip file, or its end is missing")
    if tail[:4] == b"PK\x06\x07" or count > m.MAX_ENTRIES or length > 200 * m.MAX_ENTRIES:
        raise m.Damaged("its directory is too large")
    if offset + length + _EOCD.size != size:
        raise m.Damaged("its directory is not where it should be")


def _check_entries(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    infos: dict[str, zipfile.ZipInfo] = {}
    stored = 0
    for info in archive.infolist():
        name = info.filename
        if not m.ENTRY.fullmatch(name):
            raise m.Damaged(f"it holds the impossible entry {name[:60]!r}")
        if name in infos:
            raise m.Damaged(f"it holds {name} twice")
        if info.flag_bits & 1:
            raise m.Damaged(f"{name} is encrypted")
        wanted = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
        if info.compress_type != wanted:
            raise m.Damaged(f"{name} has an unexpected compression method")
        if wanted == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise m.Damaged(f"{name} has inconsistent sizes")
        stored += info.compress_size
        infos[name] = info
    if stored > file_size:
        raise m.Damaged("its entries overlap")
    return infos
