"""The lab's files: archives, things made once, settings of a guest."""

import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kwhy.errors import UsageError
from kwhy.lab import boot, guest, paths, rootfs
from kwhy.lab.cpio import CpioWriter
from kwhy.lab.fetch import files
from kwhy.lab.kernels import KernelVersion


def unpacked(archive: bytes, into: Path) -> Path:
    """What cpio(1) makes of an archive."""
    into.mkdir()
    command = ["cpio", "-idm", "--quiet"]
    subprocess.run(command, input=archive, cwd=into, check=True, capture_output=True)
    return into


needs_cpio = pytest.mark.skipif(not shutil.which("cpio"), reason="cpio is not installed")


@needs_cpio
def test_cpio_entries(tmp_path: Path) -> None:
    """Files, links and directories come out as they went in; parents are made."""
    stream = io.BytesIO()
    writer = CpioWriter(stream)
    writer.file("a/b/file", b"data", 0o750, mtime=1234567890)
    writer.link("a/link", "b/file")
    writer.directory("empty", 0o700)
    writer.close()
    out = unpacked(stream.getvalue(), tmp_path / "out")
    assert b"data" == (out / "a/link").read_bytes()
    assert 0o750 == (out / "a/b/file").stat().st_mode & 0o777
    assert 1234567890 == int((out / "a/b/file").stat().st_mtime)
    assert 0o700 == (out / "empty").stat().st_mode & 0o777
    assert 0 == len(stream.getvalue()) % 512


@needs_cpio
def test_cpio_from_tar(tmp_path: Path) -> None:
    """A tar stream, filtered: hard links become links to the file kept."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, data in (("./usr/bin/tool", b"tool"), ("./usr/share/doc/x", b"no")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        hard = tarfile.TarInfo("./usr/bin/other")
        hard.type, hard.linkname = tarfile.LNKTYPE, "./usr/bin/tool"
        archive.addfile(hard)
    tar.seek(0)
    stream = io.BytesIO()
    writer = CpioWriter(stream)
    with tarfile.open(fileobj=tar, mode="r|") as archive:
        writer.tar(archive, lambda name: not name.startswith("usr/share/doc"))
    writer.close()
    out = unpacked(stream.getvalue(), tmp_path / "out")
    assert b"tool" == (out / "usr/bin/other").read_bytes()
    assert not (out / "usr/share").exists()


@needs_cpio
def test_guest_archive(tmp_path: Path) -> None:
    """init, the agent and extra files; archives one after the other are one initramfs."""
    extra = tmp_path / "extra"
    (extra / "usr").mkdir(parents=True)
    (extra / "usr/x").write_text("x")
    out = unpacked(rootfs.guest_archive(b"agent", {"/": extra}), tmp_path / "out")
    assert b"agent" == (out / "kwhy/agent.pyz").read_bytes()
    assert os.access(out / "init", os.X_OK)
    assert "x" == (out / "usr/x").read_text()


@needs_cpio
def test_merged_usr(tmp_path: Path) -> None:
    """A package's /lib lands in /usr/lib: a directory would replace the root's link."""
    (tmp_path / "tree/lib/sub").mkdir(parents=True)
    (tmp_path / "tree/lib/sub/x.so").write_text("x")
    (tmp_path / "tree/library").write_text("y")
    stream = io.BytesIO()
    writer = CpioWriter(stream)
    writer.tree(tmp_path / "tree", "/")
    writer.close()
    out = unpacked(stream.getvalue(), tmp_path / "out")
    assert ["library", "usr"] == sorted(path.name for path in out.iterdir())
    assert "x" == (out / "usr/lib/sub/x.so").read_text()


def test_made_once(tmp_path: Path) -> None:
    """A failed making leaves nothing, a good one is not repeated."""
    calls = []

    def fail(path: Path) -> None:
        path.mkdir()
        (path / "half").touch()
        raise OSError("disk full")

    def make(path: Path) -> None:
        calls.append(path)
        path.mkdir()
        (path / "whole").touch()

    wanted = tmp_path / "thing"
    with pytest.raises(OSError, match="disk full"):
        paths.make_once(wanted, "busy", fail)
    assert not wanted.exists()
    for _ in range(2):
        assert wanted == paths.make_once(wanted, "busy", make)
    assert 1 == len(calls)
    assert ["whole"] == [path.name for path in wanted.iterdir()]


def _make_slowly(path: Path, log: Path) -> None:
    def make(temporary: Path) -> None:
        with log.open("a") as file:
            file.write("made\n")
        temporary.write_text("x" * 100)

    paths.make_once(path, "", make)


def test_made_once_by_many_processes(tmp_path: Path) -> None:
    """Two processes do not make the same thing twice."""
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "thing", tmp_path / "log")
    workers = [context.Process(target=_make_slowly, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert "made\n" == (tmp_path / "log").read_text()


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    """A lock held by a process that was killed is free."""
    held, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        with paths.locked(tmp_path / "lock", ""):
            os.write(release, b"!")
            signal.pause()
    os.read(held, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with paths.locked(tmp_path / "lock", "must not wait"):
        pass
    os.close(held)
    os.close(release)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory of our own; pytest's temporary paths are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="kwhy-test-") as directory:
        monkeypatch.setenv("KWHY_STATE", f"{directory}/s")
        yield Path(directory) / "s"


@pytest.mark.parametrize("name", ["6.12", "", "a/b", ".x", "-x", "a" * 32, "ä"])
def test_bad_guest_name(name: str) -> None:
    """A guest's name is no version, no path, no option."""
    with pytest.raises(UsageError, match="cannot name a guest"):
        guest.check_name(name)


def test_stale_guests_are_forgotten(state: Path) -> None:
    """A guest whose process is gone, or whose number is another process's now, does not exist."""
    for name, pid, started in (("gone", 2**22 - 1, "1"), ("reused", os.getpid(), "1")):
        directory = state / "guests" / name
        directory.mkdir(parents=True)
        (directory / "guest.json").write_text(
            f'{{"name":"{name}","release":"6","version":"6","pid":{pid},"started":"{started}"}}'
        )
        assert guest.find(name) is None
        assert not directory.exists()
    assert [] == list(guest.running_guests())


def test_state_directory_is_ours(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets lie in a directory that nobody else can enter, under a short enough path."""
    assert state == paths.state_dir()
    assert 0o700 == state.stat().st_mode & 0o777
    monkeypatch.setenv("KWHY_STATE", str(state / ("long" * 30)))
    with pytest.raises(UsageError, match="too long for sockets"):
        paths.state_dir()


def test_qemu_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated unless asked; no devices but ours; what the caller adds comes last."""
    monkeypatch.setenv("KWHY_CACHE", str(tmp_path))
    kernel = files(KernelVersion("6.12-1", "6.12", "bookworm"))
    settings = boot.Settings(append="nokaslr", qemu=("-d", "exec"))
    command = boot.qemu_command(kernel, tmp_path, tmp_path / "initrd", "box", settings)
    assert "q35,accel=tcg" == command[command.index("-machine") + 1]
    assert "-nodefaults" in command and "vmcoreinfo" in command
    assert ["-d", "exec"] == command[-2:]
    append = command[command.index("-append") + 1].split()
    assert "nokaslr" in append and "kwhy.host=box" in append
    settings = boot.Settings(kvm=True)
    command = boot.qemu_command(kernel, tmp_path, tmp_path / "initrd", "box", settings)
    assert "q35,accel=kvm" == command[command.index("-machine") + 1]
