"""BTF, the kernel's own compact type information (Documentation/bpf/btf.rst), read lazily.

The parser walks the type section once to find where each type begins; names are looked up in the
string section by search.  A module's BTF continues the ids and string offsets of vmlinux's.
"""

import struct
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwhy.errors import InputError

# include/uapi/linux/btf.h
(VOID, INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC,
 FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64) = range(20)  # fmt: skip
MODIFIERS = frozenset({VOLATILE, CONST, RESTRICT, TYPE_TAG})
_EXTRA = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_PER_ITEM = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}


class Btf:
    """One BTF blob; ``base`` is vmlinux's for a module.  Raises InputError when it is not BTF."""

    def __init__(self, data: bytes, base: "Btf | None" = None) -> None:
        try:
            magic, version, _flags, hdr_len, type_off, type_len, str_off, str_len = (
                struct.unpack_from("<HBBIIIII", data)
            )
        except struct.error as error:
            raise InputError("BTF is truncated") from error
        type_at, str_at = hdr_len + type_off, hdr_len + str_off
        if magic != 0xEB9F or version != 1:
            raise InputError("not BTF (bad magic or version)")
        if (
            type_at + type_len > len(data)
            or str_at + str_len > len(data)
            or type_at & 3
            or type_len & 3
        ):
            raise InputError("BTF is truncated or damaged")
        self.base = base
        self.next_id: int
        self.end_string: int
        self.first_id = base.next_id if base else 1
        self.first_string = base.end_string if base else 0
        self.strings = data[str_at : str_at + str_len]
        self.end_string = self.first_string + str_len
        self.words = np.frombuffer(data, "<u4", type_len // 4, type_at)
        self._word = memoryview(data)[type_at : type_at + type_len].cast("I")
        self.start = self._index()
        self.next_id = self.first_id + len(self.start)

    def _index(self) -> NDArray[np.int64]:
        """Word offset of each type.  An unknown kind ends the walk: later types stay unknown."""
        fixed = [0] * 32
        per_item = [0] * 32
        for kind in range(20):
            fixed[kind] = 3 + _EXTRA.get(kind, 0)
            per_item[kind] = _PER_ITEM.get(kind, 0)
        info_words = self._word
        starts: list[int] = []
        append = starts.append
        at, end = 0, len(info_words) - 2
        while at < end:
            info = info_words[at + 1]
            kind = info >> 24 & 31
            length = fixed[kind]
            if not length:
                break
            append(at)
            items = per_item[kind]
            at += length + items * (info & 0xFFFF) if items else length
        if starts and at > len(info_words):
            starts.pop()
        return np.array(starts, np.int64)

    def owner(self, type_id: int) -> "Btf | None":
        """The blob that defines ``type_id``, None for void and unknown ids."""
        if type_id < self.first_id:
            return self.base.owner(type_id) if self.base else None
        return self if type_id < self.next_id else None

    def record(self, type_id: int) -> tuple[int, int, int, int, "Btf", int]:
        """(kind, vlen, kind_flag, size or type, owner, word offset behind); VOID if unknown."""
        owner = self.owner(type_id)
        if owner is None:
            return VOID, 0, 0, 0, self, 0
        at = int(owner.start[type_id - owner.first_id])
        info = owner._word[at + 1]
        return info >> 24 & 31, info & 0xFFFF, info >> 31, owner._word[at + 2], owner, at + 3

    def kind(self, type_id: int) -> int:
        """The BTF_KIND_... of a type."""
        return self.record(type_id)[0]

    def word(self, at: int, count: int) -> list[int]:
        """``count`` words at a word offset."""
        return list(self._word[at : at + count])

    def string(self, offset: int) -> str:
        """A string by its offset (which counts on from the base's)."""
        if offset < self.first_string and self.base:
            return self.base.string(offset)
        start = offset - self.first_string
        if not 0 <= start < len(self.strings):
            return ""
        end = self.strings.find(b"\0", start)
        return self.strings[start : end if end >= 0 else None].decode("utf-8", "replace")

    def type_name(self, type_id: int) -> str:
        """The bare name, "" if anonymous."""
        owner = self.owner(type_id)
        if owner is None:
            return ""
        return owner.string(owner._word[int(owner.start[type_id - owner.first_id])])

    @cached_property
    def _names(self) -> tuple[NDArray[np.int64], NDArray[Any]]:
        names = self.words[self.start]
        order: NDArray[np.int64] = np.argsort(names, kind="stable")
        return order, names[order]

    def string_offset(self, name: str) -> int | None:
        """Where ``name`` stands in the strings (BTF keeps each string once)."""
        at = self._offsets.get(name.encode())
        if at is not None:
            return self.first_string + at
        return self.base.string_offset(name) if self.base else None

    @cached_property
    def _offsets(self) -> dict[bytes, int]:
        out: dict[bytes, int] = {}
        at = 0
        for part in self.strings.split(b"\0"):
            out.setdefault(part, at)
            at += len(part) + 1
        return out

    def named(self, name: str, kinds: frozenset[int]) -> list[int]:
        """Ids of the types of that name, this blob's own first, then the base's."""
        out: list[int] = []
        offset = self.string_offset(name)
        if offset is not None and name:
            order, names = self._names
            left = int(np.searchsorted(names, offset, "left"))
            right = int(np.searchsorted(names, offset, "right"))
            for index in order[left:right]:
                kind = self.words[self.start[index] + 1] >> 24 & 31
                if int(kind) in kinds:
                    out.append(int(index) + self.first_id)
        if self.base:
            out += self.base.named(name, kinds)
        return out

    def members(self, type_id: int) -> list[tuple[str, int, int, int]]:
        """(name, type, bit offset, bit size or 0) of a struct or union's members."""
        kind, vlen, flag, _size, owner, at = self.record(type_id)
        if kind not in (STRUCT, UNION):
            return []
        words = owner.word(at, 3 * vlen)
        out = []
        for i in range(0, 3 * vlen, 3):
            place = words[i + 2]
            offset, width = (place & 0xFFFFFF, place >> 24) if flag else (place, 0)
            out.append((owner.string(words[i]), words[i + 1], offset, width))
        return out

    def params(self, type_id: int) -> list[tuple[str, int]]:
        """(name, type) of a FUNC_PROTO's parameters; a last ("", 0) means "..."."""
        kind, vlen, _flag, _type, owner, at = self.record(type_id)
        if kind != FUNC_PROTO:
            return []
        words = owner.word(at, 2 * vlen)
        return [(owner.string(words[i]), words[i + 1]) for i in range(0, 2 * vlen, 2)]

    def enum_values(self, type_id: int) -> list[tuple[str, int]]:
        """(name, value) of an enum's constants."""
        kind, vlen, signed, _size, owner, at = self.record(type_id)
        out = []
        if kind == ENUM:
            words = owner.word(at, 2 * vlen)
            for i in range(0, 2 * vlen, 2):
                value = words[i + 1]
                out.append(
                    (owner.string(words[i]), value - (1 << 32) if signed and value >> 31 else value)
                )
        elif kind == ENUM64:
            words = owner.word(at, 3 * vlen)
            for i in range(0, 3 * vlen, 3):
                value = words[i + 1] | words[i + 2] << 32
                out.append(
                    (owner.string(words[i]), value - (1 << 64) if signed and value >> 63 else value)
                )
        return out

    def datasec(self, name: str) -> list[tuple[int, int, int]]:
        """(offset, size, VAR id) of the variables in a section such as ".data..percpu"."""
        for type_id in self.named(name, frozenset({DATASEC})):
            _kind, vlen, _flag, _size, owner, at = self.record(type_id)
            words = owner.word(at, 3 * vlen)
            return sorted((words[i + 1], words[i + 2], words[i]) for i in range(0, 3 * vlen, 3))
        return []
