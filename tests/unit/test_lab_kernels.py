"""Which kernels there are: from recorded answers of apt to one exact version."""

import itertools
import json
import os
import time
from pathlib import Path

import pytest

from kwhy.errors import FeatureError, UsageError
from kwhy.lab import apt, kernels
from kwhy.lab.kernels import KernelVersion, compare_versions, complete_kernels, newest_first
from kwhy.lab.progress import Progress

DATA = Path(__file__).parent / "data" / "lab"
QUIET = Progress(None)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no apt on the path."""
    monkeypatch.setenv("KWHY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "cache"


def offered(debian: str) -> list[KernelVersion]:
    """The complete kernels of a recorded package list."""
    return complete_kernels(apt.parse_madison((DATA / f"madison-{debian}.txt").read_text()), debian)


def command(directory: Path, name: str, script: str) -> None:
    """A stand-in for a program of the machine."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def put_in_cache(kernel: KernelVersion, *parts: str) -> None:
    """Make the cache look as if it had parts of a kernel."""
    for part in parts:
        (kernel.directory / part).mkdir(parents=True)
    facts = {"version": kernel.version, "release": kernel.release, "debian": kernel.debian}
    (kernel.directory / "kernel.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("debian", "series", "version", "release"),
    [
        ("bullseye", "5.10", "5.10.262-1", "5.10.0-46-cloud-amd64"),
        ("bookworm", "6.1", "6.1.192-2", "6.1.0-56-cloud-amd64"),
        ("bookworm", "6.12", "6.12.117-1~deb12u1", "6.12.117+deb12-cloud-amd64"),
        ("trixie", "7", "7.2.12-1~bpo13+1", "7.2.12+deb13-cloud-amd64"),
        ("trixie", "7.2", "7.2.12-1~bpo13+1", "7.2.12+deb13-cloud-amd64"),
    ],
)
def test_newest_of_a_series(debian: str, series: str, version: str, release: str) -> None:
    """The newest version with image, debug symbols and source; meta packages are no kernels."""
    found = newest_first([kernel for kernel in offered(debian) if kernel.matches(series)])[0]
    assert KernelVersion(version, release, debian) == found


def test_kernel_without_image_is_none() -> None:
    """A -dbg package whose image is missing (7.3.4 in the recording) does not make a kernel."""
    assert "linux-image-7.3.4" in (DATA / "madison-trixie.txt").read_text()
    assert [] == [kernel for kernel in offered("trixie") if kernel.series == "7.3"]


def test_series_is_not_a_prefix_of_another() -> None:
    """6.1 is not 6.12."""
    assert {"6.1"} == {kernel.series for kernel in offered("bookworm") if kernel.matches("6.1")}


def test_names_of_packages() -> None:
    """The packages of a kernel, by its version and release."""
    kernel = KernelVersion("6.12.117-1~deb12u1", "6.12.117+deb12-cloud-amd64", "bookworm")
    assert "linux-source-6.12" == kernel.source_package.name
    assert "linux-image-6.12.117+deb12-cloud-amd64-dbg" == kernel.debug_package.name
    assert kernel.matches("6.12.117") and kernel.matches(kernel.version)
    assert not kernel.matches("6.12.11")


def test_debian_version_order() -> None:
    """The order of deb-version(7), each with each."""
    ordered = [
        "0.9~~",
        "0.9~",
        "0.9",
        "1.0~rc1-1",
        "1.0-1~bpo13+1",
        "1.0-1~deb12u1",
        "1.0-1",
        "1.0-1+b1",
        "1.0-1.1",
        "1.0-2",
        "1.0-10",
        "1.0a-1",
        "1.0+deb-1",
        "1.2-1",
        "1.10-1",
        "1:0.1-1",
    ]
    for (i, one), (j, other) in itertools.product(enumerate(ordered), repeat=2):
        found = compare_versions(one, other)
        assert (i > j) - (i < j) == (found > 0) - (found < 0), (one, other)


def test_mirrors_of_the_machine() -> None:
    """The repositories come from `apt-get indextargets`, as this machine has them."""
    found = apt.parse_mirrors((DATA / "indextargets.txt").read_text())
    expected = apt.Mirrors(
        "http://mirror.example/debian/", "http://mirror.example/debian-security/"
    )
    assert expected == found


def test_mirrors_without_lists() -> None:
    """Before the first `apt-get update` there is no Origin: the suite tells."""
    text = "Repo-URI: http://m.example/debian\nRelease: bookworm\n\nRepo-URI: x\nOrigin: Other\n"
    assert "http://m.example/debian" == apt.parse_mirrors(text).debian
    with pytest.raises(FeatureError, match="no Debian repository"):
        apt.parse_mirrors("Repo-URI: http://m.example/ubuntu\nRelease: noble\nOrigin: Ubuntu\n")


def test_offline_from_cache(cache: Path) -> None:
    """No mirror: a series is the newest in the cache, preferring one with debug symbols."""
    command(cache.parent / "bin", "apt-get", "echo 'E: no network' >&2; exit 100")
    old = KernelVersion("6.12.107-1~deb12u1", "6.12.107+deb12-cloud-amd64", "bookworm")
    new = KernelVersion("6.12.117-1~deb12u1", "6.12.117+deb12-cloud-amd64", "bookworm")
    put_in_cache(old, "image", "debug")
    assert old == kernels.resolve("6.12", QUIET)
    put_in_cache(new, "image")
    assert old == kernels.resolve("6.12", QUIET)
    (new.directory / "debug").mkdir()
    assert new == kernels.resolve("6.12", QUIET)
    assert old == kernels.resolve(old.version, QUIET) == kernels.by_release(old.release)


def test_offline_without_cache(cache: Path) -> None:
    """Nothing cached and no mirror: one sentence with the feature's name."""
    command(cache.parent / "bin", "apt-get", "echo 'E: no network' >&2; exit 100")
    with pytest.raises(FeatureError, match=r"no kernel 6\.12 in the cache") as caught:
        kernels.resolve("6.12", QUIET)
    assert "debian-mirror" == caught.value.feature


@pytest.mark.parametrize("wanted", ["box", "", "../6.12", "6.12/..", "6;rm"])
def test_not_a_version(wanted: str, cache: Path) -> None:
    """What is neither a version nor a guest is a usage error, before anybody is asked."""
    with pytest.raises(UsageError, match="neither a kernel version nor a running guest"):
        kernels.resolve(wanted, QUIET)


def lists_are_fresh(debian: str) -> apt.Apt:
    """A private tree whose lists were just read."""
    tree = apt.Apt(debian)
    tree.tree.mkdir(parents=True)
    (tree.tree / "updated").touch()
    return tree


def test_interrupted_download(cache: Path) -> None:
    """apt writes under the final name: a download that was cut is not taken for whole."""
    bin_dir = cache.parent / "bin"
    tree = lists_are_fresh("bookworm")
    package = apt.Package("thing", "1.0-1")
    name = "thing_1.0-1_all.deb"
    command(bin_dir, "apt-get", f"printf half >{name}; echo 'E: Connection reset' >&2; exit 100")
    with pytest.raises(apt.Unreachable, match="Connection reset"):
        tree.download([package], cache / "debs", QUIET)
    assert not (cache / "debs" / name).exists()
    # The second run goes on with what is there.
    command(bin_dir, "apt-get", f'[ "$(cat {name})" = half ] && printf whole >{name}')
    assert [cache / "debs" / name] == tree.download([package], cache / "debs", QUIET)
    assert "whole" == (cache / "debs" / name).read_text()
    # And a third one does not ask apt again.
    command(bin_dir, "apt-get", "exit 1")
    tree.download([package], cache / "debs", QUIET)


def test_vanished_version_is_passed_over(cache: Path) -> None:
    """Lists name versions whose files are gone (404): the next older complete one is taken."""
    tree = lists_are_fresh("bullseye")
    facts = [
        {"version": f"5.10.{n}-1", "release": f"5.10.0-{n}-cloud-amd64", "debian": "bullseye"}
        for n in (251, 262)
    ]
    stamp = (tree.tree / "updated").stat().st_mtime_ns
    (tree.tree / "kernels.json").write_text(json.dumps({"updated": stamp, "kernels": facts}))
    log = cache / "log"
    command(
        cache.parent / "bin",
        "apt-get",
        f'for last; do :; done; echo "$last" >>{log}\n'
        'case "$last" in *-dbg=5.10.262-1) echo "E: Failed  404  Not Found" >&2; exit 100;; esac\n'
        'touch "${last%%=*}_${last#*=}_amd64.deb"',
    )
    assert "5.10.251-1" == kernels.resolve("5.10", QUIET).version
    asked = log.read_text().splitlines()
    assert "5.10.251-1" == kernels.resolve("5.10", QUIET).version
    assert asked == log.read_text().splitlines(), "the answer is remembered"
    assert not (cache / "kernels" / "5.10.262-1").exists()


def test_lists_are_read_once_a_day(cache: Path) -> None:
    """`apt-get update` runs again only when the lists are a day old."""
    log = cache.parent / "log"
    script = f'echo "$*" >>{log}; cat {DATA}/indextargets.txt'
    command(cache.parent / "bin", "apt-get", script)
    tree = apt.Apt("bookworm")
    for _ in range(2):
        tree.refresh(QUIET)
    assert 1 == log.read_text().count("update")
    old = time.time() - apt.LISTS_FRESH - 1
    os.utime(tree.tree / "updated", (old, old))
    tree.refresh(QUIET)
    assert 2 == log.read_text().count("update")
    assert "bookworm-security" in (tree.tree / "etc" / "lab.sources").read_text()
