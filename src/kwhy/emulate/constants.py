"""Constants of the system-call interface by name, which no debug info and no BTF holds: they are
macros. Python's own modules know most of them, as this machine's headers have them (x86-64)."""

import functools
import importlib
import re

_MODULES = ("os", "fcntl", "socket", "mmap", "signal", "termios", "stat", "resource", "select",
            "errno")
_NAME = re.compile(
    r"[A-Z][A-Z0-9]*_[A-Z0-9_]+|SIG[A-Z0-9]+|TC[A-Z0-9]+|TIO[A-Z0-9]+|FIO[A-Z0-9]+|E[A-Z0-9]+"
)
_MORE = {
    # include/uapi/linux/fcntl.h, include/uapi/linux/futex.h, include/uapi/linux/mount.h
    "AT_FDCWD": -100, "AT_SYMLINK_NOFOLLOW": 0x100, "AT_EACCESS": 0x200, "AT_REMOVEDIR": 0x200,
    "AT_SYMLINK_FOLLOW": 0x400, "AT_NO_AUTOMOUNT": 0x800, "AT_EMPTY_PATH": 0x1000,
    "FUTEX_WAIT": 0, "FUTEX_WAKE": 1, "MS_RDONLY": 1, "MS_NOSUID": 2, "MS_NODEV": 4,
    "MS_NOEXEC": 8, "MS_REMOUNT": 32, "MS_BIND": 4096,
}  # fmt: skip


@functools.cache
def constants() -> dict[str, int]:
    """Name to value; values as the interface takes them, signed."""
    out: dict[str, int] = {}
    for module in map(importlib.import_module, _MODULES):
        for name, value in vars(module).items():
            if _NAME.fullmatch(name) and isinstance(value, int):
                out.setdefault(name, int(value))
    return {**out, **_MORE}
