"""The hooks that write down what runs: compiled ones, and the same in Python.

The compiled hooks are one small C file, compiled at its first use with this machine's C compiler
and kept in the cache. Where there is none (or ``KWHY_HOOKS=python`` says so) Python's own hooks
give identical facts, ten times slower.
"""

import ctypes
import functools
import hashlib
import mmap
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import unicorn

from kwhy.case.diskcache import cache_dir
from kwhy.case.evidence import PAGE
from kwhy.emulate.memory import Memory
from kwhy.emulate.track import Access, Track

MAX_STEPS = 2_000_000
MAX_ACCESSES = 2_000_000
_SOURCE = Path(__file__).with_name("hooks.c")
_FLAGS = ("-O2", "-shared", "-fPIC")
_NORESERVE = 0x4000  # MAP_NORESERVE, asm-generic/mman-common.h; Python does not name it
_ACCESSES = unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE


class Hooks(Protocol):
    """What a machine asks. ``full``: a bound was reached, and the run stopped."""

    @property
    def full(self) -> bool: ...
    def begin(self, limit: int) -> None: ...  # forget what was; allow so many blocks
    def track(self) -> Track: ...


def attach(uc: Any, memory: Memory, registers: list[int], detail: bool) -> Hooks:
    """Hooks on ``uc`` that track blocks, and with ``detail`` steps, accesses and ``registers``."""
    library = None if os.environ.get("KWHY_HOOKS") == "python" else _library()
    if library is None:
        return PythonHooks(uc, memory, registers, detail)
    return CompiledHooks(library, uc, memory, registers, detail)


class PythonHooks:
    """The hooks in Python."""

    def __init__(self, uc: Any, memory: Memory, registers: list[int], detail: bool) -> None:
        self._memory, self._registers, self._detail = memory, registers, detail
        self._track = Track()
        self._limit = 0
        self.full = False
        uc.hook_add(unicorn.UC_HOOK_BLOCK, self._block)
        if detail:
            uc.hook_add(unicorn.UC_HOOK_CODE, self._step)
            uc.hook_add(_ACCESSES, self._access)

    def begin(self, limit: int) -> None:
        """Forget what was tracked; allow ``limit`` blocks."""
        self._track, self._limit, self.full = Track(), limit, False

    def track(self) -> Track:
        """What ran since."""
        return self._track

    def _stop(self, uc: Any) -> None:
        self.full = True
        uc.emu_stop()

    def _block(self, uc: Any, address: int, size: int, _data: Any) -> None:
        track = self._track
        if len(track.blocks) >= self._limit:
            return self._stop(uc)
        if self._detail:
            track.registers[len(track.steps)] = tuple(uc.reg_read_batch(self._registers))
        track.blocks.append((address, size))
        if len(track.blocks) >= self._limit:
            self._stop(uc)
        return None

    def _step(self, uc: Any, address: int, _size: int, _data: Any) -> None:
        if len(self._track.steps) >= MAX_STEPS:
            return self._stop(uc)
        self._track.steps.append(address)
        return None

    def _access(self, uc: Any, kind: int, place: int, size: int, value: int, _data: Any) -> None:
        track = self._track
        if len(track.accesses) >= MAX_ACCESSES:
            return self._stop(uc)
        write = kind == unicorn.UC_MEM_WRITE
        if not write:
            data = ctypes.string_at(self._memory.host + place, min(size, 8))
            value = int.from_bytes(data, "little")
        step = len(track.steps) - 1
        track.accesses.append(_access(self._memory, step, place, value, size, write))
        return None


def _access(memory: Memory, step: int, place: int, value: int, size: int, write: bool) -> Access:
    address = memory.virtual(place)
    if place % PAGE + size > PAGE and not write:  # its end lies in another slot
        value = int.from_bytes(memory.read(address, min(size, 8)), "little")
    return Access(step, write, address, size, value & ((1 << 8 * min(size, 8)) - 1))


class _Log(ctypes.Structure):
    """struct log of hooks.c."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in (
            "limit", "max_steps", "max_accesses", "n_blocks", "n_steps", "n_accesses", "full")),
        *((name, ctypes.c_void_p) for name in (
            "blocks", "steps", "entry_steps", "entry_registers", "accesses", "host", "stop",
            "read_registers", "register_ids")),
        ("n_registers", ctypes.c_uint64), ("detail", ctypes.c_uint64),
    ]  # fmt: skip


class CompiledHooks:
    """The hooks of hooks.c; their tables are memory that is used as it is touched."""

    def __init__(
        self, library: Any, uc: Any, memory: Memory, registers: list[int], detail: bool
    ) -> None:
        from unicorn.unicorn_py3.unicorn import uclib

        self._memory = memory
        self._ids = (ctypes.c_int * len(registers))(*registers)
        self._tables: dict[str, mmap.mmap] = {}
        self._log = _Log(
            max_steps=MAX_STEPS, max_accesses=MAX_ACCESSES, host=memory.host,
            stop=_address(uclib.uc_emu_stop), read_registers=_address(uclib.uc_reg_read_batch),
            register_ids=ctypes.addressof(self._ids), n_registers=len(registers), detail=detail,
        )  # fmt: skip
        self._table("steps", 8 * MAX_STEPS)
        self._table("accesses", 40 * MAX_ACCESSES)
        wanted = [(unicorn.UC_HOOK_BLOCK, library.on_block)]
        if detail:
            wanted += [(unicorn.UC_HOOK_CODE, library.on_step), (_ACCESSES, library.on_access)]
        for kind, function in wanted:
            handle = ctypes.c_size_t()
            status = uclib.uc_hook_add(
                uc._uch, ctypes.byref(handle), kind, ctypes.cast(function, ctypes.c_void_p),
                ctypes.cast(ctypes.byref(self._log), ctypes.c_void_p),
                ctypes.c_uint64(1), ctypes.c_uint64(0),
            )  # fmt: skip
            if status != unicorn.UC_ERR_OK:
                raise unicorn.UcError(status)

    def _table(self, name: str, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        table = self._tables[name] = mmap.mmap(-1, size, flags=flags)
        setattr(self._log, name, ctypes.addressof(ctypes.c_char.from_buffer(table)))

    @property
    def full(self) -> bool:
        """Whether a bound was reached."""
        return bool(self._log.full)

    def begin(self, limit: int) -> None:
        """Forget what was tracked; allow ``limit`` blocks."""
        log = self._log
        log.limit, log.n_blocks, log.n_steps, log.n_accesses, log.full = limit, 0, 0, 0, 0
        self._table("blocks", 16 * limit)
        if log.detail:
            self._table("entry_steps", 8 * limit)
            self._table("entry_registers", 8 * limit * log.n_registers)

    def track(self) -> Track:
        """What ran since."""
        log = self._log
        track = Track(blocks=list(map(tuple, self._rows("blocks", log.n_blocks, 2).tolist())))
        if log.detail:
            track.steps = self._rows("steps", log.n_steps, 1).ravel().tolist()
            steps = self._rows("entry_steps", log.n_blocks, 1).ravel().tolist()
            rows = self._rows("entry_registers", log.n_blocks, log.n_registers).tolist()
            track.registers = dict(zip(steps, map(tuple, rows), strict=True))
            track.accesses = [
                _access(self._memory, step, place, value, size, bool(write))
                for step, place, value, size, write in self._rows(
                    "accesses", log.n_accesses, 5
                ).tolist()
            ]
        return track

    def _rows(self, name: str, count: int, columns: int) -> Any:
        return np.frombuffer(self._tables[name], np.uint64, count * columns).reshape(-1, columns)


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@functools.cache
def _library() -> Any:
    """The compiled hooks; None where they cannot be had."""
    try:
        text = _SOURCE.read_bytes()
        key = hashlib.sha256(text + repr(_FLAGS).encode()).hexdigest()[:16]
        path = cache_dir() / f"hooks-{key}.so"
        if not path.exists() and not _compile(path):
            return None
        library = ctypes.CDLL(str(path))
        return library if hasattr(library, "on_access") else None
    except OSError:
        return None


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
