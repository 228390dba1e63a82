"""The desk's disk cache of immutable facts, keyed by build-id (never by address)."""

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from kwhy.case.evidence import JSON

_KEY = re.compile(r"[0-9a-f]{8,128}")


def cache_dir() -> Path:
    """KWHY_CACHE, else kwhy/ under XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("KWHY_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "kwhy"


def _path(build_id: str, name: str) -> Path | None:
    if not _KEY.fullmatch(build_id):
        return None
    return cache_dir() / "kernel" / build_id / (name.replace("/", "-") + ".zst")


def load(build_id: str, name: str) -> bytes | None:
    """What ``store`` kept for that build-id, None if nothing (or if it is damaged)."""
    path = _path(build_id, name)
    if path is None or not path.is_file():
        return None
    import zstandard

    try:
        return zstandard.ZstdDecompressor().decompress(path.read_bytes(), max_output_size=1 << 28)
    except (OSError, zstandard.ZstdError):
        return None


def store(build_id: str, name: str, data: bytes) -> None:
    """Keep ``data``; a cache that cannot be written is no error."""
    path = _path(build_id, name)
    if path is None:
        return
    import zstandard

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(zstandard.ZstdCompressor(level=3).compress(data))
        Path(file.name).replace(path)
    except OSError:
        return


class Known:
    """Small JSON facts of one build that are slow to find, such as a function's DWARF prototype."""

    def __init__(self, build_id: str, name: str) -> None:
        self._build_id, self._name = build_id, name
        self._facts: dict[str, JSON] | None = None

    def get(self, key: str, compute: Callable[[], JSON]) -> JSON:
        """The fact; computed and kept if it is not known yet."""
        if self._facts is None:
            try:
                found = json.loads(load(self._build_id, self._name) or b"{}")
            except ValueError:
                found = {}
            self._facts = found if isinstance(found, dict) else {}
        if key not in self._facts:
            self._facts[key] = compute()
            store(self._build_id, self._name, json.dumps(self._facts).encode())
        return self._facts[key]
