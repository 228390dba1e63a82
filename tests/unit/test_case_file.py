"""Case files: what is written comes back, and no hostile file does more than one clear error."""

import json
import os
import random
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from kwhy.case import manifest
from kwhy.case.casefile import CaseFile
from kwhy.case.evidence import PAGE, Evidence, Facts, MissingMemory, Round
from kwhy.case.remembering import Remembering
from kwhy.case.summary import summary
from kwhy.errors import InputError, KwhyError


def sample() -> Remembering:
    """Evidence with something of everything."""
    made = Remembering(Facts(release="6.12.1", build_id="ab" * 20, question={"verb": "fail"}))
    made.pages = {0xFFFF_8000_0000_0000 + i * PAGE: bytes([i]) * PAGE for i in (0, 1, 7)}
    made.blobs = {"btf/vmlinux": b"BTF" * 1000, "kmsg": b"", "config": None}
    made.rounds = [
        Round(
            command=["./prog", "a b"],
            pages={0: b"page" * 1024, 3: b""},
            lost={0: 2, 3: 0},
            formats=["format/raw_syscalls/sys_enter"],
            probes=["p:kwhy_1/x foo"],
            status=-9,
            tasks=[{"pid": 1}],
            tails={"out": "é\n", "err": ""},
            extra={"clock": "mono"},
        )
    ]
    made.answer("frames/ffffffff81000000", lambda: [["f", "a.c", 1, 2]])
    return made


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A whole case on disk."""
    path = tmp_path / "x.kwhy"
    sample().save(path)
    return path


def test_what_is_saved_comes_back(case: Path) -> None:
    """Facts, memory, blobs (absent ones too), rounds and answers survive the file."""
    was, now = sample(), CaseFile(case)
    now.check()
    assert isinstance(now, Evidence)
    assert was.facts == now.facts
    assert was.rounds == now.rounds
    assert was.answers == now.answers
    for name, data in was.blobs.items():
        assert data == now.blob(name)
    assert None is now.blob("never asked for")
    first = 0xFFFF_8000_0000_0000
    assert b"\0" * 16 + b"\1" * 16 == now.read(first + PAGE - 16, 32)


def test_memory_that_was_not_kept_is_missing(case: Path) -> None:
    """A hole is told by the address of the missing byte."""
    first = 0xFFFF_8000_0000_0000
    with pytest.raises(MissingMemory) as told:
        CaseFile(case).read(first + PAGE, 2 * PAGE)
    assert first + 2 * PAGE == told.value.address


def test_answers_are_computed_once_and_only_if_not_saved(case: Path) -> None:
    """A saved answer wins; one that is lacking may still be computed where debug info is."""
    now = CaseFile(case)

    def never() -> Any:
        raise AssertionError("computed again")

    assert [["f", "a.c", 1, 2]] == now.answer("frames/ffffffff81000000", never)
    assert 5 == now.answer("new", lambda: 5)
    assert 5 == now.answer("new", never)
    assert b"BTF" * 1000 == now.derived("btf/vmlinux", never)


def test_a_saved_case_can_be_saved_again(case: Path, tmp_path: Path) -> None:
    """Saving what was opened keeps everything."""
    again = tmp_path / "again.kwhy"
    CaseFile(case).save(again)
    assert sample().rounds == CaseFile(again).rounds
    assert sample().answers == CaseFile(again).answers


def test_the_file_is_private_and_appears_whole(case: Path, tmp_path: Path) -> None:
    """Mode 0600 (it may hold kernel memory), and no remains beside it."""
    assert 0o600 == stat.S_IMODE(case.stat().st_mode)
    assert [case] == list(tmp_path.iterdir())
    with pytest.raises(KwhyError, match="cannot write the case"):
        sample().save(tmp_path / "no such place" / "x.kwhy")


def test_the_summary_cannot_move_a_terminal(case: Path) -> None:
    """Control characters of a case are spelled out."""
    opened = CaseFile(case)
    opened.facts.release = "6.1\x1b[2J"
    assert "\\x1b" in dict(summary(opened))["kernel"]


def entries(path: Path) -> dict[str, bytes]:
    """Everything in a zip."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, content: dict[str, bytes], method: int | None = None) -> None:
    """Write a zip of ``content`` in the way that kwhy does."""
    with zipfile.ZipFile(path, "w", allowZip64=False) as archive:
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            packed = name.endswith(".json")
            info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            if method is not None:
                info.compress_type = method
            archive.writestr(info, data)


def refused(path: Path) -> str:
    """The one error that opening and checking a broken case gives."""
    with pytest.raises(InputError) as told:
        CaseFile(path).check()
    assert 4 == told.value.exit_code
    assert "\n" not in str(told.value)
    return str(told.value)


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the manifest."""
    content = entries(path)
    value = json.loads(content["manifest.json"])
    edit(value)
    content["manifest.json"] = json.dumps(value).encode()
    rewrite(path, content)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "blobs/../../x",
        "a\\b",
        "blobs/",
        "blobs/123456",
        "rounds/0/cpu0/x",
        "x" * 5000,
    ],
)
def test_an_entry_outside_of_the_layout_is_refused(case: Path, name: str) -> None:
    """No name of a case becomes a path: only the known ones exist."""
    content = entries(case)
    content[name] = b"x"
    rewrite(case, content)
    refused(case)


def test_a_manifest_cannot_name_another_path(case: Path) -> None:
    """Neither can the manifest point at one."""
    change(case, lambda value: value["blobs"][0].update(entry="../x", size=1))
    assert "impossible entry" in refused(case)


def test_a_zstd_bomb_is_not_unpacked(case: Path) -> None:
    """An entry that claims gigabytes is refused by its ratio, before it is unpacked."""
    content = entries(case)
    engine = zstandard.ZstdCompressor(level=1).compressobj()
    block = bytes(1 << 20)
    bomb = b"".join(engine.compress(block) for _ in range(1024)) + engine.flush()
    value = json.loads(content["manifest.json"])
    blob = next(blob for blob in value["blobs"] if blob.get("entry"))
    content[blob["entry"]] = bomb
    blob["size"] = 1 << 30
    content["manifest.json"] = json.dumps(value).encode()
    rewrite(case, content)
    assert "claims to unpack" in refused(case)


def test_an_entry_larger_than_it_says_is_not_unpacked_further(case: Path) -> None:
    """A small claim over a large frame ends at the claim."""
    content = entries(case)
    content["memory/pages"] = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    rewrite(case, content)
    assert "does not unpack to its" in refused(case)


def test_a_deflate_bomb_in_a_json_entry_is_bounded(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The JSON entries have a limit of their own."""
    monkeypatch.setattr(manifest, "MAX_MANIFEST", 1 << 20)
    content = entries(case)
    content["manifest.json"] = b" " * (2 << 20)
    rewrite(case, content)
    assert "too large" in refused(case)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_other_compression_methods_are_refused(case: Path, method: int) -> None:
    """Only what kwhy writes is read."""
    rewrite(case, entries(case), method)
    assert "compression method" in refused(case)


def test_a_repeated_entry_is_refused(case: Path) -> None:
    """Two entries of one name would show different things to different readers."""
    with zipfile.ZipFile(case, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("memory/index", b"x")
    assert "twice" in refused(case)


def _set(*path: str | int) -> Callable[[dict[str, Any], Any], None]:
    def edit(value: dict[str, Any], new: Any) -> None:
        here: Any = value
        for step in path[:-1]:
            here = here[step]
        here[path[-1]] = new

    return edit


HUGE = 10**30
WRONG = [
    (("schema",), 7),
    (("schema",), "kwhy.case/2"),
    (("facts",), []),
    (("facts", "release"), 5),
    (("facts", "hello"), None),
    (("memory",), None),
    (("memory", "pages"), -1),
    (("memory", "pages"), True),
    (("memory", "pages"), 1.5),
    (("memory", "pages"), HUGE),
    (("memory", "pages"), 1 << 18),
    (("memory", "pages"), 2),
    (("blobs",), {}),
    (("blobs", 0), 3),
    (("blobs", 0), {"name": ["x"]}),
    (("blobs", 0), {"name": "kmsg"}),
    (("blobs", 0), {"name": "x", "entry": "blobs/0", "size": -5}),
    (("blobs", 0), {"name": "x", "entry": "blobs/0", "size": HUGE}),
    (("blobs", 0), {"name": "x", "entry": "blobs/0"}),
    (("blobs", 0), {"name": "x", "entry": "blobs/77", "size": 3}),
    (("blobs", 0), {"name": "x", "entry": 9, "size": 3}),
    (("rounds",), "x"),
    (("rounds", 0), None),
    (("rounds", 0, "command"), [1]),
    (("rounds", 0, "command"), "ls"),
    (("rounds", 0, "lost"), {"-1": 3}),
    (("rounds", 0, "lost"), {"0": -3}),
    (("rounds", 0, "lost"), {"0": HUGE}),
    (("rounds", 0, "page_size"), 0),
    (("rounds", 0, "status"), "killed"),
    (("rounds", 0, "status"), HUGE),
    (("rounds", 0, "tails"), {"out": 3}),
    (("rounds", 0, "pages"), {"0": 1}),
    (("rounds", 0, "pages", 0), {"cpu": -1, "entry": "rounds/0/cpu0", "size": 1}),
    (("rounds", 0, "pages", 0), {"cpu": 3, "entry": "rounds/0/cpu0", "size": 1}),
    (("rounds", 0, "pages", 0), {"cpu": 0, "entry": "rounds/0/cpu0", "size": 1}),
    (("rounds", 0, "extra"), []),
]


@pytest.mark.parametrize(("place", "value"), WRONG, ids=[f"{p}={str(v)[:30]}" for p, v in WRONG])
def test_wrong_types_sizes_and_numbers_are_refused(
    case: Path, place: tuple[str | int, ...], value: Any
) -> None:
    """Each key of the manifest is checked for type and range."""
    change(case, lambda top: _set(*place)(top, value))
    refused(case)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nothing",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"[]",
        b"null",
        b"NaN",
        b'{"schema": 1e999}',
        b'{"schema": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe\x00",
    ],
    ids=lambda text: repr(text[:20]) if isinstance(text, bytes) else text,
)
@pytest.mark.parametrize("entry", ["manifest.json", "answers.json"])
def test_json_made_to_hurt_is_refused(case: Path, entry: str, text: bytes) -> None:
    """Nesting, endless numbers, no JSON at all."""
    content = entries(case)
    content[entry] = text
    rewrite(case, content)
    refused(case)


@pytest.mark.parametrize(
    "index",
    [
        struct.pack("<3Q", 0x3000, 0x2000, 0x1000),
        struct.pack("<3Q", 0x1000, 0x1000, 0x2000),
        struct.pack("<3Q", 1, 2, 3),
        b"",
    ],
)
def test_a_wrong_index_of_memory_is_refused(case: Path, index: bytes) -> None:
    """Page addresses are sorted, distinct and aligned."""
    content = entries(case)
    content["memory/index"] = zstandard.ZstdCompressor().compress(index)
    rewrite(case, content)
    refused(case)


def test_a_missing_part_is_told(case: Path) -> None:
    """Any of the entries may be gone."""
    for name in ("manifest.json", "answers.json", "memory/index", "memory/pages", "blobs/0"):
        content = entries(case)
        del content[name]
        broken = case.with_name("broken.kwhy")
        rewrite(broken, content)
        assert name in refused(broken)


def test_truncation_anywhere_is_told(case: Path) -> None:
    """A file cut at any place is no case."""
    data = case.read_bytes()
    broken = case.with_name("broken.kwhy")
    for size in {0, 1, 21, 22, 100, *range(0, len(data), 97), len(data) - 1}:
        broken.write_bytes(data[:size])
        refused(broken)


def test_random_damage_is_told_or_harmless(case: Path) -> None:
    """Flipped bytes give one InputError, or a case that still opens; never anything else."""
    data = case.read_bytes()
    broken = case.with_name("broken.kwhy")
    dice = random.Random(7)
    for _ in range(400):
        copy = bytearray(data)
        for _ in range(dice.choice((1, 1, 2, 20))):
            copy[dice.randrange(len(copy))] = dice.randrange(256)
        broken.write_bytes(copy)
        try:
            opened = CaseFile(broken)
            opened.check()
            summary(opened)
        except InputError:
            continue


def test_random_bytes_are_told(tmp_path: Path) -> None:
    """Noise is no case, whatever it ends with."""
    path = tmp_path / "noise.kwhy"
    dice = random.Random(3)
    for size in (0, 10, 22, 1000, 70_000):
        path.write_bytes(dice.randbytes(size))
        refused(path)
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        path.write_bytes(dice.randbytes(size) + end)
        refused(path)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    """A directory, a fifo and nothing at all end at once."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "nothing"):
        assert "no such case file" in refused(path)
