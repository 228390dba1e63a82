"""The hooks that write down what runs: compiled ones, and the same in Python.

Python's own hooks give identical facts, many times slower.
"""

import ctypes
import mmap
import struct
from typing import Any, Protocol

import numpy as np
import unicorn
from unicorn.unicorn_py3.unicorn import uclib

from kwhy.arch import x86_64_emulation as arch
from kwhy.emulate.compiled import library
from kwhy.emulate.inside import registers_inside
from kwhy.emulate.memory import Memory, host_memory
from kwhy.emulate.track import ACCESS, Cut, Track

MAX_BLOCKS = 2_000_000
MAX_ACCESSES = 2_000_000
# A read is told when its value is known, once, also where it spans two pages.
_ACCESSES = (unicorn.UC_HOOK_MEM_READ_AFTER, unicorn.UC_HOOK_MEM_WRITE)
_ON_ACCESS = ctypes.CFUNCTYPE(  # uc_cb_hookmem_t
    None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64,
    ctypes.c_void_p,
)  # fmt: skip


class Hooks(Protocol):
    """What a machine asks. ``full``: a bound was reached, and the run stopped."""

    @property
    def full(self) -> bool: ...
    def begin(self, limit: int) -> None: ...  # forget what was; allow so many blocks
    def cut(self, address: int) -> None: ...  # the run was left here, perhaps to go on
    def track(self) -> Track: ...


def attach(uc: Any, memory: Memory, registers: list[int], detail: bool, halt: int) -> Hooks:
    """Hooks on ``uc`` that track blocks but for the one at ``halt``, and with ``detail`` accesses
    and ``registers``."""
    compiled = library()
    if compiled is None:
        return PythonHooks(uc, memory, registers, detail, halt)
    return CompiledHooks(compiled, uc, memory, registers, detail, halt)


def _hook(uc: Any, kind: int, function: Any, data: Any) -> None:
    """Add a hook that is called with ``data``; the binding adds only some kinds, and only its
    own functions."""
    handle = ctypes.c_size_t()
    status = uclib.uc_hook_add(
        uc._uch, ctypes.byref(handle), kind, ctypes.cast(function, ctypes.c_void_p),
        ctypes.cast(data, ctypes.c_void_p), ctypes.c_uint64(1), ctypes.c_uint64(0),
    )  # fmt: skip
    if status != unicorn.UC_ERR_OK:
        raise unicorn.UcError(status)


class PythonHooks:
    """The hooks in Python."""

    def __init__(
        self, uc: Any, memory: Memory, registers: list[int], detail: bool, halt: int
    ) -> None:
        self._uc, self._memory, self._registers, self._detail = uc, memory, registers, detail
        self._halt = halt
        uc.hook_add(unicorn.UC_HOOK_BLOCK, self._block)
        if detail:
            self._kept = _ON_ACCESS(self._access)
            for kind in _ACCESSES:
                _hook(uc, kind, self._kept, None)
        self.begin(0)

    def begin(self, limit: int) -> None:
        """Forget what was tracked; allow ``limit`` blocks."""
        self._limit, self.full = limit, False
        self._blocks: list[tuple[int, int]] = []
        self._entry: list[tuple[int, ...]] = []
        self._accesses: list[tuple[int, ...]] = []
        self._cuts: list[Cut] = []

    def cut(self, address: int) -> None:
        """The last block was left at ``address``."""
        self._cuts.append(Cut(len(self._blocks) - 1, address))

    def track(self) -> Track:
        """What ran since."""
        blocks = np.array(self._blocks, np.uint64).reshape(-1, 2)
        return Track(
            blocks[:, 0],
            blocks[:, 1].astype(np.uint32),
            np.array(self._entry, np.uint64).reshape(len(self._entry), len(self._registers)),
            np.array(self._accesses, ACCESS),
            tuple(self._cuts),
        )

    def _stop(self) -> None:
        self.full = True
        self._uc.emu_stop()

    def _block(self, uc: Any, address: int, size: int, _data: Any) -> None:
        if address == self._halt:
            return None
        if len(self._blocks) >= self._limit:
            return self._stop()
        if self._detail:
            self._entry.append(tuple(uc.reg_read_batch(self._registers)))
        self._blocks.append((address, size))
        if len(self._blocks) >= self._limit:
            self._stop()
        return None

    def _access(self, _uc: Any, kind: int, place: int, size: int, value: int, _data: Any) -> None:
        if len(self._accesses) >= MAX_ACCESSES:
            return self._stop()
        offset = self._uc.reg_read(arch.REGISTERS[arch.PC]) - self._blocks[-1][0]
        value &= (1 << 8 * min(size, 8)) - 1
        write = kind == unicorn.UC_MEM_WRITE
        address = self._memory.virtual(place % self._memory.size)
        self._accesses.append(
            (value, address, len(self._blocks) - 1, offset & 0xFFFF, size, write)
        )
        return None


class _Log(ctypes.Structure):
    """struct log of hooks.c."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in (
            "limit", "max_accesses", "n_blocks", "n_accesses", "full")),
        *((name, ctypes.c_void_p) for name in (
            "blocks", "registers", "accesses", "table", "stop", "registers_now", "read_registers",
            "register_ids")),
        *((name, ctypes.c_uint64) for name in ("n_registers", "detail", "halt")),
    ]  # fmt: skip


_BEGIN = struct.Struct("<5Q")  # the first members of struct log


class CompiledHooks:
    """The hooks of hooks.c; their tables are memory that is used as it is touched."""

    def __init__(
        self, compiled: Any, uc: Any, memory: Memory, registers: list[int], detail: bool, halt: int
    ) -> None:
        ids = (*registers, arch.REGISTERS[arch.PC])
        self._ids = (ctypes.c_int * len(ids))(*ids)
        self._memory = memory
        self._tables: dict[str, mmap.mmap] = {}
        self._cuts: list[Cut] = []
        self._log = _Log(
            table=ctypes.addressof(memory.table),
            stop=_address(uclib.uc_emu_stop),
            registers_now=registers_inside(uc, ids) if detail else None,
            read_registers=_address(uclib.uc_reg_read_batch),
            register_ids=ctypes.addressof(self._ids), n_registers=len(registers), detail=detail,
            halt=halt,
        )  # fmt: skip
        self._table("blocks", 16 * MAX_BLOCKS)
        log, table = ctypes.byref(self._log), ctypes.byref(memory.table)
        hooks = [
            (unicorn.UC_HOOK_TLB_FILL, compiled.kwhy_on_fill, table),
            (unicorn.UC_HOOK_BLOCK, compiled.kwhy_on_block, log),
        ]
        if detail:
            self._table("accesses", ACCESS.itemsize * MAX_ACCESSES)
            self._table("registers", 8 * len(registers) * MAX_BLOCKS)
            hooks += [(kind, compiled.kwhy_on_access, log) for kind in _ACCESSES]
        for kind, function, data in hooks:
            _hook(uc, kind, function, data)

    def _table(self, name: str, size: int) -> None:
        table = self._tables[name] = host_memory(size)
        setattr(self._log, name, ctypes.addressof(ctypes.c_char.from_buffer(table)))

    @property
    def full(self) -> bool:
        """Whether a bound was reached."""
        return bool(self._log.full)

    def begin(self, limit: int) -> None:
        """Forget what was tracked; allow ``limit`` blocks."""
        _BEGIN.pack_into(self._log, 0, min(limit, MAX_BLOCKS), MAX_ACCESSES, 0, 0, 0)
        self._cuts.clear()

    def cut(self, address: int) -> None:
        """The last block was left at ``address``."""
        self._cuts.append(Cut(self._log.n_blocks - 1, address))

    def track(self) -> Track:
        """What ran since."""
        log = self._log
        blocks = self._rows("blocks", np.uint64, log.n_blocks, 2)
        if not log.detail:
            return Track(blocks[:, 0], blocks[:, 1].astype(np.uint32), cuts=tuple(self._cuts))
        return Track(
            blocks[:, 0],
            blocks[:, 1].astype(np.uint32),
            self._rows("registers", np.uint64, log.n_blocks, log.n_registers),
            self._rows("accesses", ACCESS, log.n_accesses, 1)[:, 0],
            tuple(self._cuts),
        )

    def _rows(self, name: str, kind: Any, count: int, columns: int) -> Any:
        rows = np.frombuffer(self._tables[name], kind, count * columns).reshape(-1, columns)
        return rows.copy()  # the next run overwrites them


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
