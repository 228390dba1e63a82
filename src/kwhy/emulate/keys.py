"""What stands for a state, found again without asking the model for it.

A model's ``state()`` looks at memory and nothing else. Its looks are kept as a tree: where it looks
first, and for each value that was found there where it looks next; at the end stands the key. A
state of which all looks are known is recognized by following them (in hooks.c, at a hundredth of
the time).
"""

import ctypes
import weakref
from collections.abc import Sequence

from kwhy.emulate.compiled import library
from kwhy.emulate.memory import Memory
from kwhy.errors import InputError

MAX_LOOKS = 1 << 21
"""So many are kept: 100 MB."""
_COMPARED = 64


class Keys:
    """Keys of the states of a ``memory``; without the compiled hooks none is ever known."""

    def __init__(self, memory: Memory) -> None:
        self._compiled = library()
        self._keys: list[bytes] = []
        self._found = 0
        self._table = ctypes.byref(memory.table)
        if self._compiled is None:
            return
        for name in ("kwhy_keys_find", "kwhy_keys_add"):
            getattr(self._compiled, name).restype = ctypes.c_int64
        self._compiled.kwhy_keys_new.restype = ctypes.c_void_p
        self._tree = ctypes.c_void_p(self._compiled.kwhy_keys_new(ctypes.c_uint64(MAX_LOOKS)))
        if not self._tree:
            raise MemoryError
        weakref.finalize(self, self._compiled.kwhy_keys_free, self._tree)

    def find(self) -> bytes | None:
        """The key of the state that the memory is in, if it is known.

        Now and then a known one is not told, so that ``add`` can compare.
        """
        if self._compiled is None:
            return None
        number = self._compiled.kwhy_keys_find(self._tree, self._table)
        if number < 0:
            return None
        self._found += 1
        often = self._found & self._found - 1 == 0  # of the first ones some, then one in many
        return None if often or self._found % _COMPARED == 0 else self._keys[number]

    def add(self, looks: Sequence[int], key: bytes) -> None:
        """The memory is in a state that ``looks`` showed to be ``key``'s: addresses and sizes in
        bytes by turns, in their order. One that is not at a number in one page is not kept.

        Raises InputError if the same looks showed another one's before.
        """
        if self._compiled is None:
            return
        number = len(self._keys)
        added = self._compiled.kwhy_keys_add(
            self._tree, self._table, (ctypes.c_uint64 * len(looks))(*looks),
            ctypes.c_uint64(len(looks) // 2), ctypes.c_uint64(number),
        )  # fmt: skip
        if added == number:
            self._keys.append(key)
        elif added >= 0 and self._keys[added] != key:
            raise InputError(
                "the model's state() gave two answers for the same memory: it may depend on "
                "nothing but memory, else no search can tell states apart"
            )
