"""The kernel model's smaller parts: identity, exception tables, debug files, source trees, ELF."""

import json
import struct
from pathlib import Path

import pytest

from kwhy.case.evidence import Facts
from kwhy.case.remembering import Remembering
from kwhy.errors import InputError
from kwhy.kernel import debuginfo, extable, sourcetext
from kwhy.kernel.elf import ElfFile, build_id_of, notes
from kwhy.kernel.identity import identify, vmcoreinfo
from kwhy.kernel.lines import SourceFrame, from_json, relative_file, to_json

DATA = Path(__file__).parent / "data" / "kernel"
BUILD_ID = "ab" * 20


def note(name: bytes, kind: int, desc: bytes) -> bytes:
    """One ELF note."""

    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack("<III", len(name), len(desc), kind) + pad(name) + pad(desc)


def elf(path: Path, build_id: str = BUILD_ID, debug: bool = True) -> Path:
    """A tiny ELF file with a build-id, one loaded segment, and perhaps a .debug_info."""
    sections = [("", 0, 0, b"")]
    sections.append((".text", 1, 0xFFFF_FFFF_8100_0000, b"\x90" * 16))
    sections.append((".notes", 7, 0, note(b"GNU\0", 3, bytes.fromhex(build_id))))
    if debug:
        sections.append((".debug_info", 1, 0, b"dwarf"))
    names = b"\0" + b"".join(n.encode() + b"\0" for n, *_ in sections[1:]) + b".shstrtab\0"
    sections.append((".shstrtab", 3, 0, names))
    body, headers = b"", b""
    start = 64 + 56
    for name, kind, address, data in sections:
        at = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
        offset = start + len(body)
        headers += struct.pack("<IIQQQQIIQQ", at, kind, 0, address, offset, len(data), 0, 0, 0, 0)
        body += data
    segment = struct.pack("<IIQQQQQQ", 1, 5, start, 0xFFFF_FFFF_8100_0000, 0, 16, 0x2000, 0)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, start + len(body), 0, 64, 56, 1, 64,
                        len(sections), len(sections) - 1)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + segment + body + headers)
    return path


class Blobs(Remembering):
    """Evidence of blobs alone."""

    def __init__(self, blobs: dict[str, bytes | None]) -> None:
        super().__init__(Facts(release="from facts", build_id="facts"))
        self.blobs = blobs

    def blob(self, name: str) -> bytes | None:
        """As given."""
        return self.blobs.get(name)


def test_identity_comes_from_notes_and_vmcoreinfo() -> None:
    """The note of /proc/kcore holds the release and what KASLR added."""
    text = b"OSRELEASE=6.12.1\nSYMBOL(_stext)=ffffffff8f000000\nKERNELOFFSET=e000000\n"
    core = note(b"CORE\0", 1, b"x" * 5) + note(b"VMCOREINFO\0", 0, text)
    blobs: dict[str, bytes | None] = {
        "vmcoreinfo": core,
        "notes": note(b"GNU\0", 3, bytes.fromhex(BUILD_ID)),
    }
    found = identify(Blobs(blobs))  # type: ignore[arg-type]
    assert ("6.12.1", BUILD_ID, 0xE000000) == (found.release, found.build_id, found.slide)
    assert 0xFFFF_FFFF_8F00_0000 == found.stext
    assert {"A": "1"} == vmcoreinfo(b"A=1\nnonsense\n")


def test_identity_without_kcore_is_what_the_agent_said() -> None:
    """No VMCOREINFO: the slide is not known, the rest is."""
    found = identify(Blobs({}))  # type: ignore[arg-type]
    assert ("from facts", "facts", None) == (found.release, found.build_id, found.slide)


def test_damaged_notes_end_the_reading() -> None:
    """A note that is longer than the blob is left out."""
    good = note(b"GNU\0", 3, b"1234")
    assert [(b"GNU", 3, b"1234")] == notes(good + struct.pack("<III", 4, 1 << 30, 1))
    assert None is build_id_of(b"short")


def test_elf_segments_and_sections(tmp_path: Path) -> None:
    """Bytes at an address, zeros of .bss, nothing outside."""
    file = ElfFile(elf(tmp_path / "vmlinux"))
    assert BUILD_ID == file.build_id()
    assert b"dwarf" == file.section(".debug_info")
    assert file.has_debug_info()
    start = 0xFFFF_FFFF_8100_0000
    assert None is file.at(start - 1, 4)
    assert bytes(8) == file.at(start + 0x1000, 8)
    assert None is file.at(start + 0x1FFF, 8)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"x" * 300, b"\x7fELF\x02\x01" + b"\xff" * 300])
def test_what_is_no_elf_is_told(tmp_path: Path, data: bytes) -> None:
    """One InputError."""
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(InputError):
        ElfFile(path)


def test_debug_files_are_found_by_build_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layouts of packages and of .build-id trees; a wrong build-id is never used."""
    monkeypatch.setattr(debuginfo, "SYSTEM", tmp_path / "nothing")
    monkeypatch.setattr(debuginfo, "lab_files", lambda release: None)
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)
    package = elf(tmp_path / "a/usr/lib/debug/boot/vmlinux-6.12.1")
    tree = elf(tmp_path / f"b/.build-id/ab/{'ab' * 19}.debug")
    elf(tmp_path / "c/vmlinux-6.12.1", build_id="cd" * 20)
    elf(tmp_path / "d/vmlinux-6.12.1", debug=False)
    assert package == debuginfo.find_debug("6.12.1", BUILD_ID, tmp_path / "a")
    assert package == debuginfo.find_debug("6.12.1", BUILD_ID, package)
    assert tree == debuginfo.find_debug("6.12.1", BUILD_ID, tmp_path / "b")
    with pytest.raises(InputError, match="build-id differs"):
        debuginfo.find_debug("6.12.1", BUILD_ID, tmp_path / "c")
    with pytest.raises(InputError, match="no vmlinux with debug info"):
        debuginfo.find_debug("6.12.1", BUILD_ID, tmp_path / "d")
    with pytest.raises(InputError, match="no such file"):
        debuginfo.find_debug("6.12.1", BUILD_ID, tmp_path / "e")
    monkeypatch.setenv("KWHY_DEBUG_PATH", f"{tmp_path / 'c'}:{tmp_path / 'a'}")
    assert package == debuginfo.find_debug("6.12.1", BUILD_ID)
    assert None is debuginfo.find_debug("6.12.1", "ef" * 20)
    assert None is debuginfo.find_debug("6.12.1", BUILD_ID, "none")


def test_module_files_are_found_by_name_and_build_id(tmp_path: Path) -> None:
    """Dashes of the file are underscores of the module; another build is not taken."""
    path = elf(tmp_path / "lib/modules/6.12.1/kernel/drivers/net/virtio-net.ko.debug")
    found = debuginfo.find_module("6.12.1", "virtio_net", BUILD_ID, tmp_path)
    assert path == found
    assert None is debuginfo.find_module("6.12.1", "virtio_net", "cd" * 20, tmp_path)
    assert None is debuginfo.find_module("6.12.1", "other", None, tmp_path)


def tree(root: Path, version: str) -> Path:
    """A kernel source tree of some version."""
    numbers = dict(zip(("VERSION", "PATCHLEVEL", "SUBLEVEL"), version.split("."), strict=True))
    (root / "fs").mkdir(parents=True)
    (root / "Makefile").write_text("".join(f"{k} = {v}\n" for k, v in numbers.items()))
    (root / "fs/open.c").write_text("int x;\n")
    return root


def test_source_is_of_exactly_that_version_or_refused(tmp_path: Path) -> None:
    """The banner tells the version where Debian's release name does not."""
    banner = (
        "Linux version 5.10.0-9 (gcc (Debian 10.2.1-6) 10) #1 SMP Debian 5.10.70-1 (2021-09-30)"
    )
    right = tree(tmp_path / "right", "5.10.70")
    package = tree(tmp_path / "package/usr/src/linux-source-5.10", "5.10.70")
    tree(tmp_path / "wrong", "5.10.71")
    assert {"5.10.70"} == sourcetext.versions("5.10.0-9-amd64", banner)
    assert right == sourcetext.find_source("5.10.0-9-amd64", banner, right)
    assert package == sourcetext.find_source("5.10.0-9-amd64", banner, tmp_path / "package")
    with pytest.raises(InputError, match=r"is Linux 5\.10\.71, the target runs 5\.10\.70"):
        sourcetext.find_source("5.10.0-9-amd64", banner, tmp_path / "wrong")
    with pytest.raises(InputError, match="not a kernel source tree"):
        sourcetext.find_source("5.10.0-9-amd64", banner, tmp_path)
    assert None is sourcetext.find_source("5.10.0-9-amd64", banner, "none")
    assert sourcetext.same_version("7.2", {"7.2.0"})


def test_source_names_cannot_leave_the_tree(tmp_path: Path) -> None:
    """A hostile case may name any file; only those below the tree are read."""
    root = tree(tmp_path / "linux", "6.12.1")
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    assert "int x;\n" == sourcetext.read_file(root, "fs/open.c")
    for name in ("../secret", "/etc/passwd", "fs/../../secret", "link", "", "fs", "none.c", "a\0b"):
        assert None is sourcetext.read_file(root, name)


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        ("drivers/tty/tty_jobctrl.c", "drivers/tty/tty_jobctrl.c"),
        ("./include/linux/fs.h", "include/linux/fs.h"),
        ("/build/linux-7XvMBX/linux-5.10.251/fs/open.c", "fs/open.c"),
        ("/build/linux-a/linux-5.10.1/debian/build/build_amd64/../../../fs/open.c", "fs/open.c"),
        ("/home/me/src/mm/mmap.c", "mm/mmap.c"),
        ("fs/../kernel/fork.c", "kernel/fork.c"),
        ("kernel/../../x.c", "x.c"),
    ],
)
def test_file_names_are_relative_to_the_tree(name: str, relative: str) -> None:
    """Whatever prefix the builder's directory left."""
    assert relative == relative_file(name)


def test_frames_survive_a_case_and_odd_ones_are_left_out() -> None:
    """What a case stored comes back; what is malformed does not."""
    frames = [SourceFrame("f", "a.c", 3, 5), SourceFrame("g", "b.c", 9, 0)]
    assert frames == from_json(to_json(frames))
    assert [] == from_json([["f", "a.c", "3", 5], [], None, 7])
    assert [] == from_json("x")


@pytest.mark.parametrize("series", ["5.10", "6.1", "6.12", "7.2"])
def test_exception_tables_of_both_formats(series: str) -> None:
    """5.10 points to handlers, later kernels have a type word: seen from the data alone."""
    recorded = json.loads((DATA / f"{series}.json").read_text())["extable"]
    handlers = {int(address, 16): name for address, name in recorded["handlers"].items()}
    address = int(recorded["address"], 16)
    table = bytes.fromhex(recorded["table"])
    entries = extable.parse(table, address, handlers.get)
    assert len(table) // 12 == len(entries)
    assert entries == sorted(entries, key=lambda entry: entry.insn)
    assert {0xFFFF_FFFF_8000_0000} == {entry.insn & 0xFFFF_FFFF_8000_0000 for entry in entries}
    kinds = {entry.kind for entry in entries}
    assert (bool(handlers), 0) == (series == "5.10", sum(e.type for e in entries if handlers))
    assert ("wrmsr" in kinds) == (series != "5.10")
    for entry in entries:
        if entry.kind == "efault_reg":
            assert (-14, True) == (entry.imm, entry.register is not None)
    assert entries[3:5] == extable.between(entries, entries[3].insn, entries[5].insn)


def test_an_empty_or_cut_exception_table() -> None:
    """Nothing, and a rest that is no whole entry."""
    assert [] == extable.parse(b"", 0, lambda address: None)
    assert [] == extable.parse(b"\0" * 11, 0, lambda address: None)
