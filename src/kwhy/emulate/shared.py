"""Which states the processes of a search have found, in memory that all of them share.

Without it a state that one process has found would be judged, saved and sent again by each other
one that meets it. Batches are numbered in the order in which their answers are taken up: what an
earlier one has found is known, what a later one has found is not, so that the same states are taken
from the same batches however fast each process is.
"""

import multiprocessing
import struct
from collections.abc import Iterable

from kwhy.emulate.memory import shared_memory

_ROOM = 1 << 21
"""So many states are told to the others; 50 MB, used as it is filled."""
_RECORD = struct.Struct("<16sQ")
_COUNT = struct.Struct("<Q")


class Shared:
    """Keys of states (16 bytes) with the number of a batch that has found them.

    To be made before the processes are; each has read nothing yet.
    """

    def __init__(self) -> None:
        self._lock = multiprocessing.get_context("fork").Lock()
        self._memory = shared_memory(_COUNT.size + _RECORD.size * _ROOM)
        self._found: dict[bytes, int] = {}
        self._read = 0

    def add(self, keys: Iterable[bytes], batch: int) -> None:
        """Tell what a batch has found; of more than there is room for nobody hears."""
        data = b"".join(_RECORD.pack(key, batch) for key in keys)
        with self._lock:
            (count,) = _COUNT.unpack_from(self._memory)
            if count + len(data) // _RECORD.size <= _ROOM:
                start = _COUNT.size + _RECORD.size * count
                self._memory[start : start + len(data)] = data
                _COUNT.pack_into(self._memory, 0, count + len(data) // _RECORD.size)

    def hear(self) -> dict[bytes, int]:
        """What was told so far, with the first batch that found it."""
        with self._lock:
            (count,) = _COUNT.unpack_from(self._memory)
        start = _COUNT.size + _RECORD.size * self._read
        data = self._memory[start : _COUNT.size + _RECORD.size * count]
        for key, number in _RECORD.iter_unpack(data):
            self._found[key] = min(number, self._found.get(key, number))
        self._read = count
        return self._found
