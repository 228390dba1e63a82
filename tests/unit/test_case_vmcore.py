"""Files that are no usable kernel dump are refused in one line, before anything is analysed."""

import struct
from pathlib import Path

import pytest

from kwhy.case.vmcore import VmcoreEvidence, cpu_registers
from kwhy.errors import InputError


def _core(path: Path, *, loaded: int, written: int) -> Path:
    """An ELF core file whose one segment promises ``loaded`` bytes and has ``written``."""
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 4, 120, 0, 0, loaded, loaded, 0)
    path.write_bytes(header + segment + bytes(written))
    return path


def test_a_missing_dump_is_named(tmp_path: Path) -> None:
    """The message says which file is not there."""
    with pytest.raises(InputError, match=r"nothing\.core: there is no such dump"):
        VmcoreEvidence(tmp_path / "nothing.core")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x7fELF\x02\x01" + b"\xff" * 100, b"KDUMP   " + b"\xff" * 5000]
)
def test_what_is_no_dump_is_refused(tmp_path: Path, content: bytes) -> None:
    """Text, an ELF header of rubbish and a kdump header of rubbish are input errors."""
    path = tmp_path / "rubbish"
    path.write_bytes(content)
    with pytest.raises(InputError, match="rubbish: "):
        VmcoreEvidence(path)


def test_a_truncated_dump_is_refused(tmp_path: Path) -> None:
    """A file shorter than its program headers say is told as such."""
    path = _core(tmp_path / "short.core", loaded=1 << 20, written=100)
    with pytest.raises(InputError, match="truncated: its headers promise 1048696 bytes"):
        VmcoreEvidence(path)


def test_a_foreign_core_dump_is_refused(tmp_path: Path) -> None:
    """A core file without VMCOREINFO, such as a process's, is told what it lacks."""
    path = _core(tmp_path / "process.core", loaded=4096, written=4096)
    with pytest.raises(InputError, match="VMCOREINFO"):
        VmcoreEvidence(path)


def _note(name: bytes, kind: int, data: bytes) -> bytes:
    padded = [piece + bytes(-len(piece) % 4) for piece in (name, data)]
    return struct.pack("<III", len(name), len(data), kind) + b"".join(padded)


def test_registers_of_each_cpu(tmp_path: Path) -> None:
    """Every NT_PRSTATUS note is one CPU; other notes and what is torn are passed over."""
    status = [bytes(112) + struct.pack("<27Q", *range(base, base + 27)) for base in (100, 200)]
    notes = (
        _note(b"CORE\0", 1, status[0]) + _note(b"QEMU\0", 0, bytes(440))
        + _note(b"CORE\0", 1, status[1]) + _note(b"CORE\0", 1, bytes(50))
    )  # fmt: skip
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    path = tmp_path / "core"
    segment = struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(notes), 0, 4)
    path.write_bytes(header + segment + notes + b"\x05\0\0\0torn")
    one, two = cpu_registers(path)
    assert (100, 104, 116, 119) == (one["r15"], one["bp"], one["ip"], one["sp"])
    assert (216, 219) == (two["ip"], two["sp"])
    path.write_bytes(b"KDUMP   " + bytes(100))
    assert [] == list(cpu_registers(path))
