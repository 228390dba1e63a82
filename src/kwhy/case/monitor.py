"""Evidence from a QEMU guest that cannot answer itself: its memory through QEMU's control socket.

The guest is not stopped and nothing in it takes part: drgn asks QEMU where the guest's physical
memory is and walks the kernel's page tables. It must have ``-device vmcoreinfo``, and the module
qemu_fw_cfg loaded since it booted.
"""

import contextlib
import select
import socket
from collections.abc import Iterator
from pathlib import Path

from kwhy.case.program import ProgramEvidence, one_line
from kwhy.errors import InputError, LinkError

_GREETING_WITHIN = 10.0
"""Seconds; QEMU lets a second client of a socket wait until the first hangs up."""


@contextlib.contextmanager
def guest_memory(path: Path, name: str) -> Iterator[ProgramEvidence]:
    """The kernel of the guest behind a QMP socket; ``name`` is what a reader calls the guest.

    The connection ends with the block. Raises LinkError when QEMU does not answer, InputError when
    what it shows is no Linux kernel that told its VMCOREINFO.
    """
    import drgn

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        _greeted(stream, path, name)
        program = drgn.Program()
        try:
            program.set_qemu_qmp(stream.dup().detach())
        except Exception as error:  # drgn raises what it happened to stumble over
            why = one_line(error)
            raise LinkError(f"{name}: QEMU does not answer on {path}: {why}") from error
        try:
            if not program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
                raise InputError(
                    f"{name}: no Linux kernel is found in its memory: QEMU needs -device "
                    "vmcoreinfo, the guest the module qemu_fw_cfg"
                )
            evidence = ProgramEvidence(program, name)
            evidence.facts.extra["note"] = (
                "memory was read through QEMU's control socket, not by the guest"
            )
            yield evidence
        finally:
            with contextlib.suppress(OSError):  # drgn's end of it too
                stream.shutdown(socket.SHUT_RDWR)


def _greeted(stream: socket.socket, path: Path, name: str) -> None:
    try:
        stream.connect(str(path))
    except OSError as error:
        raise LinkError(f"{name}: no QEMU answers on {path}: {error.strerror}") from None
    if not select.select([stream], [], [], _GREETING_WITHIN)[0]:
        raise LinkError(f"{name}: QEMU says nothing on {path}: another program may be using it")
