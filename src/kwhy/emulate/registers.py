"""Registers of the emulated processor: several at once, and around a run."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import unicorn
from unicorn.unicorn_py3.unicorn import uclib

from kwhy.arch import x86_64_emulation as arch
from kwhy.emulate.compiled import library

_ON_COUNTER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_GIVEN = (*arch.ARGUMENTS, arch.STACK, arch.FLAGS)
_TOLD = (arch.PC, arch.RESULT)


class Registers:
    """Some registers written, or read, in one call: many times cheaper than one by one."""

    def __init__(self, uc: Any, names: Sequence[str]) -> None:
        self.count = len(names)
        self._words = (ctypes.c_uint64 * self.count)()
        start = ctypes.addressof(self._words)
        self.ids = (ctypes.c_int * self.count)(*(arch.REGISTERS[name] for name in names))
        self.places = (ctypes.c_void_p * self.count)(*range(start, start + 8 * self.count, 8))
        self._call = (uc._uch, self.ids, self.places, self.count)

    def hold(self, values: Sequence[int]) -> None:
        """Have these values, cut to 64 bits, in the order of the names, ready to be written."""
        self._words[:] = list(values)

    @property
    def held(self) -> list[int]:
        """The values that were read last."""
        return self._words[:]

    def write(self, *values: int) -> None:
        """In the order of the names."""
        self.hold(values)
        uclib.uc_reg_write_batch(*self._call)

    def read(self) -> list[int]:
        """In the order of the names."""
        uclib.uc_reg_read_batch(*self._call)
        return self.held


class _Run(ctypes.Structure):
    """struct run of hooks.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "write_registers", "start", "read_registers", "uc",
            "given_ids", "given", "told_ids", "told")),
        *((name, ctypes.c_int) for name in ("n_given", "n_told")),
        ("fresh", ctypes.c_uint64),
    ]  # fmt: skip


class _Counter(ctypes.Structure):
    """struct counter of hooks.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("write_registers", "ask", "ids", "values")),
        *((name, ctypes.c_int) for name in ("count", "known")),
    ]  # fmt: skip


class Counter:
    """The time-stamp counter, which stands still: ``value`` is asked for it once.

    Has to live as long as the emulator.
    """

    def __init__(self, uc: Any, value: Callable[[], int]) -> None:
        self._value = value
        self._shown = Registers(uc, arch.COUNTER)
        self._ask = _ON_COUNTER(self._answer)
        self._counter = _Counter(
            *map(_address, (uclib.uc_reg_write_batch, self._ask)),
            ctypes.addressof(self._shown.ids), ctypes.addressof(self._shown.places),
            self._shown.count,
        )  # fmt: skip
        compiled = library()
        callback = self._ask if compiled is None else compiled.kwhy_on_counter
        for instruction in arch.COUNTER_INSTRUCTIONS:
            handle = ctypes.c_size_t()
            status = uclib.uc_hook_add(  # the binding has no such hook
                uc._uch, ctypes.byref(handle), unicorn.UC_HOOK_INSN,
                ctypes.cast(callback, ctypes.c_void_p), ctypes.byref(self._counter),
                ctypes.c_uint64(1), ctypes.c_uint64(0), ctypes.c_int(instruction),
            )  # fmt: skip
            if status != unicorn.UC_ERR_OK:
                raise unicorn.UcError(status)

    def _answer(self, _uc: Any, _data: Any) -> int:
        if not self._counter.known:
            value = self._value()
            self._shown.hold((value & 0xFFFFFFFF, value >> 32))
            self._counter.known = 1
        self._shown.write(*self._shown.held)
        return 1  # the emulator is not to do it itself


class Runner:
    """Starts the emulator, after writing a function's arguments, and reads what came of it."""

    def __init__(self, uc: Any) -> None:
        self._uc = uc
        self._given, self._told = Registers(uc, _GIVEN), Registers(uc, _TOLD)
        self._fresh = False
        self._compiled = library()
        self._run = _Run(
            *map(_address, (
                uclib.uc_reg_write_batch, uclib.uc_emu_start, uclib.uc_reg_read_batch, uc._uch)),
            *(ctypes.addressof(table) for table in (
                self._given.ids, self._given.places, self._told.ids, self._told.places)),
            self._given.count, self._told.count,
        )  # fmt: skip
        if self._compiled is not None:
            self._go = self._compiled.kwhy_run
            self._go.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
            self._place = ctypes.addressof(self._run)

    def give(self, values: Sequence[int]) -> None:
        """The arguments' registers, stack pointer and flags that the next run begins with."""
        self._given.hold(values)
        self._fresh = True

    def run(self, start: int, until: int) -> tuple[int, int]:
        """Run; the emulator's status and the program counter. Raises what a Python hook raised."""
        if self._compiled is not None:
            if self._fresh:
                self._fresh, self._run.fresh = False, 1
            status = self._go(self._place, start, until)
        else:
            if self._fresh:
                self._fresh = False
                self._given.write(*self._given.held)
            status = uclib.uc_emu_start(self._uc._uch, start, until, 0, 0)
            self._told.read()
        raised, self._uc._hook_exception = self._uc._hook_exception, None
        if raised is not None:
            raise raised
        return status, self._told.held[0]

    @property
    def result(self) -> int:
        """The result's register when the last run ended."""
        return self._told.held[1]


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
