"""kwhy asks the Linux kernel why a system call failed."""

__version__ = "0.1.0"
