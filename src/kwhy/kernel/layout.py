"""Finding a struct's fields by path or by offset, over any maker of types."""

import re
from typing import Protocol

from kwhy.kernel.types import Member, TypeRef

MAX_DEPTH, MAX_FOUND = 24, 200
_STEP = re.compile(r"([A-Za-z_]\w*)|\[(\d+)\]")

EXACT, BITS, INSIDE, ACROSS, CONTAINED, MARKER = range(6)
"""How well a field fits an access, best first.  MARKER: an element of an empty array, such as
sk_buff's __cloned_offset, which only marks a place."""


class Layouts(Protocol):
    """What the searches need of a maker."""

    def fields(self, type: TypeRef) -> list[Member]: ...
    def deref(self, type: TypeRef) -> TypeRef | None: ...
    def size(self, type: TypeRef) -> int | None: ...
    def is_struct(self, type: TypeRef) -> bool: ...
    def is_array(self, type: TypeRef) -> bool: ...
    def array_length(self, type: TypeRef) -> int: ...


def field(types: Layouts, type: TypeRef, path: str) -> Member | None:
    """The field at a path such as "ctrl.pgrp" or "fd_array[3]"; offset counts from ``type``."""
    offset, here, member = 0, type, None
    for name, index in _STEP.findall(path):
        if name:
            member = next((m for m in types.fields(here) if m.path == name), None)
            if member is None:
                return None
            offset += member.offset
            here = member.type
        else:
            element = types.deref(here) if types.is_array(here) else None
            size = types.size(element) if element else None
            if element is None or size is None:
                return None
            offset += int(index) * size
            here, member = element, Member("", element, 0, size)
    if member is None:
        return None
    return Member(path, here, offset, member.size, member.bits)


def member(types: Layouts, type: TypeRef, byte_offset: int, size: int) -> list[Member]:
    """Fields that ``size`` bytes at ``byte_offset`` touch, best first (see EXACT...MARKER).

    Alternatives of unions are all listed, in declaration order within their fit.
    """
    found: list[tuple[int, int, Member]] = []
    _descend(types, type, byte_offset, size, "", 0, found, 0)
    found.sort(key=lambda item: (item[0], item[1]))
    best: dict[str, Member] = {}
    for _fit, _depth, place in found:
        if place.path:
            best.setdefault(place.path, place)
    return list(best.values())


def _descend(
    types: Layouts,
    type: TypeRef,
    offset: int,
    size: int,
    path: str,
    base: int,
    found: list[tuple[int, int, Member]],
    depth: int,
) -> None:
    """``offset`` counts from ``type``'s start, which lies ``base`` bytes into the asked one."""
    if depth > MAX_DEPTH or len(found) > MAX_FOUND:
        return
    if types.is_struct(type):
        for m in types.fields(type):
            name = f"{path}.{m.path}" if path else m.path
            start, at = m.offset, base + m.offset
            if m.bits:
                low = 8 * start + m.bits[0]
                if low < 8 * (offset + size) and low + m.bits[1] > 8 * offset:
                    found.append((BITS, depth, Member(name, m.type, at, m.size, m.bits, False)))
            elif start <= offset and (offset < start + m.size or _open_ended(types, m)):
                _descend(types, m.type, offset - start, size, name, at, found, depth + 1)
            elif offset < start < offset + size:
                found.append((CONTAINED, depth, Member(name, m.type, at, m.size, None, False)))
        return
    own = types.size(type)
    if types.is_array(type):
        element = types.deref(type)
        step = types.size(element) if element else None
        if element is not None and step:
            index = offset // step
            inner: list[tuple[int, int, Member]] = []
            at = base + index * step
            _descend(types, element, offset % step, size, f"{path}[{index}]", at, inner, depth + 1)
            found += [(fit if own else MARKER, level, place) for fit, level, place in inner]
    elif own:
        exact = offset == 0 and size == own
        fit = EXACT if exact else INSIDE if offset + size <= own else ACROSS
        found.append((fit, depth, Member(path, type, base, own, None, exact)))


def _open_ended(types: Layouts, m: Member) -> bool:
    """A flexible array member: it has no size, yet what lies behind belongs to it."""
    return m.size == 0 and types.is_array(m.type) and not types.array_length(m.type)
