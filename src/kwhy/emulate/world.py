"""A kernel to experiment with: its functions run offline, one after the other, on one memory.

What models for ``kwhy explore`` are written against.
"""

from collections.abc import Callable

from kwhy.case.evidence import MissingMemory
from kwhy.emulate.ground import Ground
from kwhy.emulate.keys import Keys
from kwhy.emulate.memory import OutOfSlots, State
from kwhy.emulate.scene import KernelScene
from kwhy.errors import InputError
from kwhy.kernel.model import Kernel

LIMIT = 100_000  # basic blocks of one call
MAX_ALLOCATED = 64 << 20  # bytes at a time: the emulator has 256 MiB for all pages


class Stopped(Exception):
    """The code cannot go on offline; the text says why ("it would sleep ...")."""


class Mistake(InputError):
    """A model asks for what there is not."""


class World:
    """Calls kernel functions; reads what they left. Numbers are Python ints throughout."""

    def __init__(self, kernel: Kernel, cpu: int = 0) -> None:
        self.kernel = kernel
        self.cpu = cpu
        self.scene = KernelScene(Ground(kernel), cpu, None)
        self._keys = Keys(self.scene.memory)
        self._looks: list[int] | None = None
        self._word = self.scene.memory.reader(8)
        self._functions: dict[str, int] = {}
        self._fields: dict[tuple[str, str], tuple[int, int, Callable[[int], int]]] = {}

    # -- for models --------------------------------------------------------------------------------

    def call(self, function: str, *arguments: int) -> int:
        """The 64-bit result of a kernel function. Raises Stopped where it cannot go on."""
        self._looks = None
        end = self.scene.enter(self._function(function), arguments, LIMIT)
        if end.kind != "returned":
            raise Stopped(f"{function}(): {end.reason}")
        return self.scene.machine.result()

    def peek(self, function: str, *arguments: int) -> int:
        """As ``call``, but what the function changed is undone."""
        state = self.save()
        try:
            return self.call(function, *arguments)
        finally:
            self.load(state)

    def symbol(self, name: str) -> int:
        """Address of a function or variable. Raises Mistake if the kernel has none."""
        found = self.kernel.symbols.named(name)
        if not found:
            raise Mistake(f"the kernel has no symbol {name}")
        return found[0].address

    def field(self, address: int, struct: str, path: str) -> int:
        """A number or pointer in a structure: ``field(page, "struct buffer_page", "read")``."""
        offset, size, read = self._fields.get((struct, path)) or self._field(struct, path)
        place = address + offset
        if self._looks is not None:
            self._looks += (place, size)
        try:
            return read(place)
        except MissingMemory as error:
            raise _missing(place, error) from None

    def inside(self, address: int, struct: str, path: str) -> int:
        """The address of a member."""
        return address + self._field(struct, path)[0]

    def word(self, address: int) -> int:
        """Eight bytes of memory."""
        if self._looks is not None:
            self._looks += (address, 8)
        try:
            return self._word(address)
        except MissingMemory as error:
            raise _missing(address, error) from None

    def text(self, address: int, limit: int = 256) -> str:
        """The string at an address."""
        return self._read(address, limit).split(b"\0")[0].decode("utf-8", "replace")

    def allocate(self, data: bytes) -> int:
        """Memory that holds ``data``, for arguments and results; to be made in ``prepare``."""
        if len(data) > MAX_ALLOCATED:
            raise Mistake(f"{len(data):,} bytes are too many: {MAX_ALLOCATED:,} at most")
        self._looks = None
        try:
            return self.scene.allocate(data)
        except OutOfSlots:
            raise Mistake("the emulator has no memory left") from None

    # -- for the search ----------------------------------------------------------------------------

    def save(self) -> State:
        """What the calls so far have changed."""
        return self.scene.memory.state()

    def seal(self) -> None:
        """From now on nothing is fetched from the target: Unfetched is raised instead."""
        self.scene.ground.sealed = True

    def fingerprint(self) -> str:
        """What stands for the target's memory, as far as it was touched."""
        return self.scene.memory.fingerprint()

    def load(self, state: State) -> None:
        """Go back to a saved state; empty, it is the beginning."""
        self._looks = None
        self.scene.memory.restore(state)

    def recall(self) -> bytes | None:
        """The key of the state that the memory is in, if it can be told without the model."""
        return self._keys.find()

    def remember(self, make: Callable[[], bytes]) -> bytes:
        """The key that ``make`` works out; it is recalled where all it looked at is as now."""
        self._looks = []
        try:
            key = make()
        finally:
            looks, self._looks = self._looks, None
        if looks is not None:
            self._keys.add(looks, key)
        return key

    def _read(self, address: int, size: int) -> bytes:
        self._looks = None
        try:
            return self.scene.memory.read(address, size)
        except MissingMemory as error:
            raise _missing(address, error) from None

    def _function(self, name: str) -> int:
        if name not in self._functions:
            self._functions[name] = self.symbol(name)
        return self._functions[name]

    def _field(self, struct: str, path: str) -> tuple[int, int, Callable[[int], int]]:
        if (struct, path) not in self._fields:
            types = self.kernel.types
            kind = types.named(struct)
            found = types.field(kind, path) if kind is not None else None
            if found is None:
                raise Mistake(f"the kernel's type information has no {path} in {struct}")
            read = self.scene.memory.reader(found.size, types.is_signed(found.type))
            self._fields[struct, path] = (found.offset, found.size, read)
        return self._fields[struct, path]


def _missing(address: int, error: MissingMemory) -> Stopped:
    return Stopped(f"no memory at {address:#x}: {error.why}")
