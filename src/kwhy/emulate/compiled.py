"""The part of the emulation that is compiled: hooks.c, one small file.

Installing kwhy builds it beside this module. Where that is missing or was made from other source,
it is compiled at its first use with this machine's C compiler and kept in the cache. Where there is
none either (or ``KWHY_HOOKS=python`` says so) Python does the same, many times slower.
"""

import ctypes
import functools
import hashlib
import importlib.machinery
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kwhy.case.diskcache import cache_dir

_SOURCE = Path(__file__).with_name("hooks.c")
_FLAGS = ("-O2", "-shared", "-fPIC")


def library() -> Any:
    """The compiled part, as ctypes has it; None where it cannot be had, or is not to be used."""
    return None if os.environ.get("KWHY_HOOKS") == "python" else _library()


@functools.cache
def _library() -> Any:
    try:
        source = _SOURCE.read_bytes()
        key = hashlib.sha256(source + repr(_FLAGS).encode()).hexdigest()[:16]
        kept = cache_dir() / f"hooks-{key}.so"
        for path in (*_installed(), kept):
            if path.exists() and (found := _loaded(path, source)) is not None:
                return found
        return _loaded(kept, source) if _compile(kept) else None
    except OSError:
        return None


def _installed() -> Iterator[Path]:
    """What the build of the package may have left beside this module."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        yield _SOURCE.with_name(f"_hooks{suffix}")


def _loaded(path: Path, source: bytes) -> Any:
    """The library at ``path``; None if it was not made from ``source``, which it carries."""
    found = ctypes.CDLL(str(path))
    if not hasattr(found, "kwhy_hooks_source"):
        return None
    place = ctypes.addressof(ctypes.c_char.in_dll(found, "kwhy_hooks_source"))
    return found if ctypes.string_at(place) == source else None


def _compile(path: Path) -> bool:
    compiler = shutil.which("cc")
    if compiler is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        command = [compiler, *_FLAGS, "-o", str(made), str(_SOURCE)]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        if done.returncode:
            return False
        made.replace(path)
    return True
