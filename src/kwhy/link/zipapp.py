"""Packing the agent into one file that any Python 3.6 or newer can run.

Beside the sources lie their compiled forms for this desk's own Python: a target that runs the same
one (as the lab's guests may) starts in half the time, all others pass over them.
"""

import hashlib
import importlib.util
import io
import os
import py_compile
import tempfile
import zipfile
from pathlib import Path

import kwhy.agent

MAIN = "import sys\nfrom kwhy.agent.__main__ import main\nsys.exit(main())\n"


def agent_zipapp() -> Path:
    """The agent as ``agent-HASH.pyz`` in the cache directory, made when its sources changed."""
    digest = hashlib.sha256(importlib.util.MAGIC_NUMBER)
    for name, text in _sources().items():
        digest.update(f"{name}\0{text}\0".encode())
    path = cache_directory() / f"agent-{digest.hexdigest()[:16]}.pyz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_bytes(agent_bytes())
        part.chmod(0o755)
        part.rename(path)
    return path


def agent_bytes() -> bytes:
    """The zipapp's bytes."""
    files: dict[str, bytes] = {}
    for name, text in _sources().items():
        files[name] = text.encode()
        if name != "__main__.py":
            files[f"{name}c"] = _compiled(name, text)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, data, compress_type=zipfile.ZIP_DEFLATED)
    return b"#!/usr/bin/env python3\n" + buffer.getvalue()


def _sources() -> dict[str, str]:
    package = Path(kwhy.agent.__file__).parent
    files = {"__main__.py": MAIN, "kwhy/__init__.py": ""}
    for source in sorted(package.glob("*.py")):
        files[f"kwhy/agent/{source.name}"] = source.read_text()
    return files


def _compiled(name: str, text: str) -> bytes:
    """Byte code that the importer takes without asking for the source's time (PEP 552)."""
    with tempfile.TemporaryDirectory(prefix="kwhy-") as directory:
        source, target = Path(directory, "x.py"), Path(directory, "x.pyc")
        source.write_text(text)
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), str(target), name, doraise=True, invalidation_mode=mode)
        return target.read_bytes()


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/kwhy``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "kwhy"
