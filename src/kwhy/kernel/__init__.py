"""What a kernel is: image, symbols, types, source lines, source text, live code."""

from kwhy.kernel.model import Kernel, open_kernel

__all__ = ["Kernel", "open_kernel"]
