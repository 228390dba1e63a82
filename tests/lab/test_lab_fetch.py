"""Fetching from the real mirror: an interrupted download, and the cache without a mirror."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from kwhy.lab import apt, fetch, kernels, packages
from kwhy.lab.progress import Progress

QUIET = Progress(None)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_interrupted_download_is_finished(tmp_path: Path) -> None:
    """What a cut download left behind is completed, or thrown away when it is wrong."""
    client = apt.Apt("bookworm")
    client.refresh(QUIET)
    package = client.versions(["manpages-dev"])[0]
    (whole,) = client.download([package], tmp_path / "whole", QUIET)
    expected = digest(whole)
    for name, rest in (("cut", whole.read_bytes()[:500_000]), ("wrong", b"\0" * 700_000)):
        incoming = tmp_path / name / "incoming"
        incoming.mkdir(parents=True)
        (incoming / whole.name).write_bytes(rest)
        (again,) = client.download([package], tmp_path / name, QUIET)
        assert expected == digest(again)


def test_download_that_was_only_begun(tmp_path: Path) -> None:
    """Asking whether a large file is there stops when it comes, and what came is no package."""
    kernel = kernels.resolve("6.12", QUIET)
    client = apt.Apt(kernel.debian)
    assert client.available(kernel.debug_package, tmp_path)
    assert [] == list(tmp_path.glob("*.deb"))


def test_cached_kernel_needs_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a kernel in the cache, apt is not asked at all for what is there."""
    kernel = kernels.resolve("6.12", QUIET)
    before = fetch.get(kernel, ["image"], QUIET)
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert 100 == subprocess.run(["apt-get", "update"], check=False).returncode
    assert before == fetch.get(kernels.resolve(kernel.release, QUIET), ["image"], QUIET)
    assert kernel == kernels.by_release(kernel.release)


def test_files_of_a_kernel() -> None:
    """Image, modules with their dependencies, debug symbols and source, where they are said."""
    found = fetch.get(kernels.resolve("6.12", QUIET), ["debug", "source"], QUIET)
    assert found.vmlinuz.is_file() and (found.modules_dir / "modules.dep.bin").is_file()
    assert found.vmlinux_debug is not None and found.debug_dir is not None
    assert found.vmlinux_debug.read_bytes()[:4] == b"\x7fELF"
    assert next(found.debug_dir.rglob("*.ko*"), None) is not None
    assert found.source_dir is not None
    assert "tty_check_change" in (found.source_dir / "drivers/tty/tty_jobctrl.c").read_text()


def test_manual() -> None:
    """The manual's pages, for the words on an error number."""
    pages = packages.manual_dir(fetch=True, progress=QUIET)
    assert pages is not None and pages == packages.manual_dir()
    assert (pages / "man2").is_dir() and (pages / "man3").is_dir()
