"""An agent's answer as the desk sees it: the error that it means, the data that it packed."""

import zlib
from typing import Any

from kwhy.errors import FeatureError, KwhyError, LinkError, UsageError

JSON = Any

MAX_RESULT = 1 << 30
"""Bytes that one answer may have, unpacked."""


def failure(header: dict[str, JSON]) -> KwhyError:
    """The exception for an agent's error answer."""
    found = header.get("error")
    error: dict[str, JSON] = found if isinstance(found, dict) else {}
    message = str(error.get("message") or "the agent failed without a word")
    kind = error.get("kind")
    if kind in ("feature", "absent"):
        return FeatureError(message, str(error.get("feature") or kind))
    if kind in ("usage", "command"):
        return UsageError(message)
    if kind == "cancelled":
        return LinkError("the target gave the request up")
    detail = error.get("detail")
    where = f" [{' | '.join(map(str, detail))}]" if isinstance(detail, list) else ""
    return LinkError(f"the agent failed: {message}{where}")


def unpack(header: dict[str, JSON], data: bytes) -> bytes:
    """Undo the agent's compression, never beyond the size that it announced."""
    if header.get("encoding") != "zlib":
        return data
    size = header.get("size")
    if not isinstance(size, int) or not 0 <= size <= MAX_RESULT:
        raise LinkError("the target announces an absurd size")
    try:
        engine = zlib.decompressobj()
        plain = engine.decompress(data, size + 1)
    except zlib.error as error:
        raise LinkError(f"the target sent damaged data: {error}") from None
    if len(plain) != size:
        raise LinkError("the target sent more or less data than announced")
    return plain
