"""Fields of kernel structures by name, over any evidence and any maker of types."""

from kwhy.case.evidence import Evidence, MissingMemory
from kwhy.kernel.model import Kernel
from kwhy.kernel.types import TypeRef

MASK = (1 << 64) - 1

#: Types that a module defines, should the kernel not have it built in.
_MODULES = {
    "struct mapped_device": "dm_mod", "struct hash_cell": "dm_mod", "struct loop_device": "loop",
    "struct loop_worker": "loop", "struct jbd2_journal_handle": "jbd2", "struct journal_s": "jbd2",
    "struct transaction_s": "jbd2", "struct fuse_req": "fuse", "struct fuse_mount": "fuse",
    "struct fuse_conn": "fuse", "struct fuse_dev": "fuse", "struct fuse_chan": "fuse",
    "struct rpc_task": "sunrpc",
    "struct rpc_clnt": "sunrpc", "struct rpc_xprt": "sunrpc", "struct nfs_server": "nfs",
    "struct unix_sock": "unix", "struct ext4_inode_info": "ext4", "struct xfs_inode": "xfs",
    "struct btrfs_inode": "btrfs", "struct fuse_inode": "fuse",
}  # fmt: skip


def kernel_pointer(word: int) -> bool:
    """Whether a word may point into the kernel, under four or five levels of page tables."""
    return word >> 56 == 0xFF


class Memory:
    """Reads integers and pointers; every miss is a MissingMemory or a LookupError."""

    def __init__(self, kernel: Kernel, evidence: Evidence | None = None) -> None:
        """``evidence``: another reading of the same kernel's memory than its own."""
        self.kernel = kernel
        self.evidence = evidence or kernel.evidence
        self._fields: dict[tuple[str, str], tuple[int, int, tuple[int, int] | None] | None] = {}
        self._types: dict[str, TypeRef | None] = {}
        self._symbols: dict[str, int | None] = {}

    def type(self, name: str) -> TypeRef | None:
        """A type by its C name, None if the kernel has no such type."""
        if name not in self._types:
            self._types[name] = self.kernel.types.named(name, _MODULES.get(name))
        return self._types[name]

    def _field(self, type: str, path: str) -> tuple[int, int, tuple[int, int] | None] | None:
        key = (type, path)
        if key not in self._fields:
            here = self.type(type)
            member = self.kernel.types.field(here, path) if here is not None else None
            found = None if member is None else (member.offset, member.size, member.bits)
            self._fields[key] = found
        return self._fields[key]

    def has(self, type: str, path: str) -> bool:
        """Whether the type has that field."""
        return self._field(type, path) is not None

    def offset(self, type: str, path: str) -> int:
        """Bytes from the start of ``type``; raises LookupError."""
        return self._need(type, path)[0]

    def width(self, type: str, path: str) -> int:
        """Bytes of a field; raises LookupError."""
        return self._need(type, path)[1]

    def first(self, type: str, *paths: str) -> str:
        """The first of ``paths`` that the type has: fields that were renamed; LookupError."""
        for path in paths:
            if self.has(type, path):
                return path
        raise LookupError(f"{type} has none of {', '.join(paths)}")

    def size(self, type: str) -> int:
        """Bytes; raises LookupError."""
        here = self.type(type)
        size = self.kernel.types.size(here) if here is not None else None
        if not size:
            raise LookupError(f"no type information for {type}")
        return size

    def value(self, type: str, address: int, path: str) -> int:
        """An integer or pointer field, unsigned. Raises LookupError, MissingMemory."""
        offset, size, bits = self._need(type, path)
        if not 0 < size <= 8:
            raise LookupError(f"{type}.{path} is no integer")
        number = int.from_bytes(self.read(address + offset, size), "little")
        return number if bits is None else number >> bits[0] & (1 << bits[1]) - 1

    def text(self, type: str, address: int, path: str) -> str:
        """A character array as text."""
        offset, size, _bits = self._need(type, path)
        raw = self.read(address + offset, min(size, 4096))
        return raw.split(b"\0")[0].decode("utf-8", "replace")

    def read(self, address: int, size: int) -> bytes:
        """Bytes; raises MissingMemory, for NULL too: some dumps have something there."""
        if not kernel_pointer(address):
            raise MissingMemory(address)
        return self.evidence.read(address, size)

    def u64(self, address: int) -> int:
        """Eight bytes as a number."""
        return int.from_bytes(self.read(address, 8), "little")

    def string(self, address: int, limit: int = 256) -> str:
        """A C string of at most ``limit`` bytes."""
        out = b""
        while len(out) < limit:
            piece = min(64 - (address + len(out)) % 64, limit - len(out))
            out += self.read(address + len(out), piece)
            if b"\0" in out:
                break
        return out.split(b"\0")[0].decode("utf-8", "replace")

    def linked(self, node: int) -> bool:
        """Whether a ``struct list_head`` hangs in a list: its neighbours point back to it."""
        try:
            following, before = self.u64(node), self.u64(node + 8)
            return self.u64(following + 8) == node and self.u64(before) == node
        except MissingMemory:
            return False

    def symbol(self, name: str) -> int:
        """The address of a variable of the kernel image; raises LookupError."""
        if name not in self._symbols:
            self._symbols[name] = self.kernel.symbols.address(name)
        address = self._symbols[name]
        if address is None:
            raise LookupError(f"no symbol {name}")
        return address

    def _need(self, type: str, path: str) -> tuple[int, int, tuple[int, int] | None]:
        found = self._field(type, path)
        if found is None:
            raise LookupError(f"no type information for {type}.{path}")
        return found


__all__ = ["MASK", "Memory", "MissingMemory", "kernel_pointer"]
