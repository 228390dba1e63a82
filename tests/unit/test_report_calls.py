"""System calls as strace would print them, from the six registers of a trace."""

import pytest

from kwhy.arch.x86_64_syscalls import SYSCALLS
from kwhy.report import calls
from kwhy.verdict import FailedCall


def call(syscall: str, *args: str, decoded: tuple[str, ...] = ()) -> FailedCall:
    return FailedCall(
        pid=1, tid=1, comm="c", syscall=syscall, args=args, ret=-5, errno="EIO", decoded=decoded
    )


@pytest.mark.parametrize(
    ("expected", "args"),
    [
        ("ioctl(3, TCSETSW, …)", "ioctl 0x3 0x5403 0x7ffd3c1f2a40"),
        ("ioctl(3, TCGETS, …)", "ioctl 0x3 0xdead00005401 0xffff888000000000"),
        ("openat(AT_FDCWD, …, O_RDONLY, 0)", "openat 0xffffff9c 0x7ffd3c1f2a40 0x0 0x0"),
        (
            "openat(AT_FDCWD, NULL, O_RDWR|O_CREAT|O_CLOEXEC, 0644)",
            "openat 0xffffffffffffff9c 0x0 0x80042 0x1a4",
        ),
        ("kill(-1, SIGKILL)", "kill 0xffffffff 0x9"),
        ("kill(-5, 64)", "kill 0xfffffffffffffffb 0x40"),
        (
            "mmap(0, 0, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
            "mmap 0x0 0x0 0x3 0x22 0xffffffff 0x0",
        ),
        ("mount(…, …, …, MS_NODEV|0x80000000, NULL)", "mount 0x7f0000000000 0x7f0000000000 "
         "0x7f0000000000 0x80000004 0x0"),
        ("setns(3, CLONE_NEWUSER)", "setns 0x3 0x10000000"),
        ("setns(3, 0)", "setns 0x3 0x0"),
        ("rmdir(…)", "rmdir 0x7ffd3c1f2a40"),
        ("getpid()", "getpid"),
        ("io_uring_register(4, IORING_REGISTER_BUFFERS, …, 1)",
         "io_uring_register 0x4 0x0 0x7f0000000000 0x1"),
        ("not_known(3, …, 0, 0, 0, 0)", "not_known 0x3 0x7f0000000000 0x0 0x0 0x0 0x0"),
        ("close(?)", "close ?"),
    ],
)  # fmt: skip
def test_text(expected: str, args: str) -> None:
    """Numbers, flags and addresses as the manual would have them."""
    syscall, *values = args.split()
    assert expected == calls.text(call(syscall, *values))


def test_unused_registers_are_dropped() -> None:
    """A trace has six registers; the verdict has the arguments of the call."""
    full = call("ioctl", "0x3", "0x5403", "0x7ffd3c1f2a40", "0xdead", "0xbeef", "0x1")
    decoded = calls.decode(full)
    assert ("0x3", "0x5403", "0x7ffd3c1f2a40") == decoded.args
    assert ("3", "TCSETSW", "…") == decoded.decoded
    assert decoded == calls.decode(decoded)


def test_decoded_arguments_win() -> None:
    """What the diagnosis decoded is shown; an empty one falls back to the number."""
    assert "mprotect(here, 4096, PROT_NONE)" == calls.text(
        call("mprotect", "0x0", "0x1000", "0x0", decoded=("here", "", "PROT_NONE"))
    )


def test_shapes_are_of_real_calls() -> None:
    """Every shape belongs to a system call that exists, and has at most six known letters."""
    assert set() == set(calls.SHAPE) - set(SYSCALLS.values())
    assert set() == {s for s in calls.SHAPE.values() if len(s) > 6 or set(s) - set("dopsux")}
