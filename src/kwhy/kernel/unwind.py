"""The way up a kernel's stacks, as the kernel itself would go."""

from kwhy.kernel.model import Kernel
from kwhy.kernel.orc import OrcUnwinder
from kwhy.kernel.stacksteps import Unwinder


def unwinder(kernel: Kernel) -> Unwinder:
    """That of the kernel's architecture. Raises LookupError without type information."""
    return OrcUnwinder(kernel)
