"""Writing a case: everything that was handed out, in one zip of mode 0600."""

import json
import os
import struct
import tempfile
import zipfile
from pathlib import Path

import zstandard

import kwhy
from kwhy.case.manifest import BlobEntry, Manifest, PagesEntry, encode
from kwhy.case.remembering import Remembering
from kwhy.errors import KwhyError

_WHEN = (1980, 1, 1, 0, 0, 0)  # entries carry no time: a case says when in its facts, if at all


class _Writer:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._compressor = zstandard.ZstdCompressor(level=3)

    def json(self, name: str, data: bytes) -> None:
        info = zipfile.ZipInfo(name, _WHEN)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = 0o600 << 16
        self._archive.writestr(info, data)

    def packed(self, name: str, data: bytes) -> None:
        info = zipfile.ZipInfo(name, _WHEN)
        info.external_attr = 0o600 << 16
        self._archive.writestr(info, self._compressor.compress(data))


def write_case(path: Path, evidence: Remembering) -> None:
    """Write ``evidence`` to ``path``, which appears whole or not at all.

    Raises KwhyError when the place cannot be written.
    """
    try:
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    except OSError as error:
        raise KwhyError(f"cannot write the case {path}: {error.strerror}") from error
    try:
        # mkstemp made it 0600, which is what a file that may hold kernel memory shall be.
        with (
            os.fdopen(handle, "wb") as file,
            zipfile.ZipFile(file, "w", allowZip64=False) as archive,
        ):
            _write(_Writer(archive), evidence)
        Path(scratch).replace(path)
    except (OSError, zipfile.LargeZipFile) as error:
        raise KwhyError(f"cannot write the case {path}: {error}") from error
    finally:
        Path(scratch).unlink(missing_ok=True)


def _write(out: _Writer, evidence: Remembering) -> None:
    manifest = Manifest(facts=evidence.facts, memory_pages=len(evidence.pages))
    for number, (name, data) in enumerate(sorted(evidence.blobs.items())):
        if data is None:
            manifest.blobs.append(BlobEntry(name, None))
            continue
        entry = f"blobs/{number}"
        out.packed(entry, data)
        manifest.blobs.append(BlobEntry(name, entry, len(data)))
    for index, one in enumerate(evidence.rounds):
        places = []
        for cpu, data in sorted(one.pages.items()):
            entry = f"rounds/{index}/cpu{cpu}"
            out.packed(entry, data)
            places.append(PagesEntry(cpu, entry, len(data)))
        manifest.rounds.append(one)
        manifest.round_pages.append(places)
    addresses = sorted(evidence.pages)
    out.packed("memory/index", struct.pack(f"<{len(addresses)}Q", *addresses))
    out.packed("memory/pages", b"".join(evidence.pages[address] for address in addresses))
    out.json("answers.json", json.dumps(evidence.answers).encode())
    out.json("manifest.json", encode(manifest, kwhy.__version__))
