"""The BTF of a loaded module from kernel memory, for targets that are no running system."""

from kwhy.case.evidence import Evidence, MissingMemory
from kwhy.kernel.types import TypeRef, Types

_MAX_MODULES, _MAX_SIZE = 4096, 64 << 20


def from_memory(evidence: Evidence, types: Types, head: int | None, name: str) -> bytes | None:
    """The BTF of module ``name`` as kernel/bpf/btf.c keeps it in the list at ``head``.

    None where the kernel keeps no such list or it cannot be read.
    """
    kind, blob = types.named("struct btf_module"), types.named("struct btf")
    if head is None or kind is None or blob is None:
        return None

    def at(of: TypeRef, path: str) -> int:
        found = types.field(of, path)
        if found is None:
            raise LookupError(path)
        return found.offset

    def word(address: int, size: int = 8) -> int:
        return int.from_bytes(evidence.read(address, size), "little")

    try:
        node = word(head)
        for _ in range(_MAX_MODULES):
            if node == head:
                return None
            here = word(node - at(kind, "list") + at(kind, "btf"))
            raw = evidence.read(here + at(blob, "name"), 64)
            if raw.split(b"\0")[0].decode("utf-8", "replace") == name:
                size = word(here + at(blob, "data_size"), 4)
                return evidence.read(word(here + at(blob, "data")), min(size, _MAX_SIZE))
            node = word(node)
    except (MissingMemory, LookupError):
        return None
    return None
