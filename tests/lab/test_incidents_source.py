"""Every truth of the incidents stands in the source of the kernels that it speaks of."""

import re
from functools import cache
from pathlib import Path

import pytest

from kwhy.lab.incidents import INCIDENTS, NAMED, PROGRAMS, Truth
from kwhy.lab.kernels import cached_kernels

SERIES = ("5.10", "6.1", "6.12", "7.2")


@cache
def source_tree(series: str) -> Path:
    """The kernel source of that series in the lab's cache; skips the test when there is none."""
    for kernel in reversed(cached_kernels()):
        for folder in (kernel.directory / "source").glob("**/Kbuild"):
            if kernel.series == series:
                return folder.parent
    pytest.skip(f"no source of {series} in the lab's cache (kwhy lab get {series})")


@cache
def text_of(path: Path) -> str:
    """A source file without its comments, white space folded."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(errors="replace"), flags=re.S)
    return text.replace("\\\n", " ")


def body(text: str, function: str) -> str:
    """The text of one function definition, or "" if there is none."""
    if function.startswith("__do_sys_"):
        start = rf"^SYSCALL_DEFINE\d\({function.removeprefix('__do_sys_')},"
    else:
        start = rf"^(?:\w[^;{{}}#]*?[\s*])?{function}\s*\("
    found = [
        match[0]
        for match in re.finditer(rf"{start}[^;{{}}]*\)[^;{{}}()]*\{{.*?^\}}", text, re.M | re.S)
    ]
    return re.sub(r"\s+", " ", " ".join(found))


def stands(truth: Truth, function: str) -> bool:
    """Whether the function's text holds the truth's text as a condition."""
    text = re.escape(truth.text).replace(r"\ ", r"\s*")
    inside = rf"(?:if|while|switch)\s*\(\s*{text}\s*\)"
    return bool(re.search(rf"{inside}|{text}\s*\?|return {text};|^.*\b{text}\s*\{{", function))


@pytest.mark.parametrize("series", SERIES)
def test_every_truth_stands_in_the_source(series: str) -> None:
    """The function exists in that file, and its text holds the condition, whole."""
    tree = source_tree(series)
    missing = []
    for incident in INCIDENTS.values():
        for truth in (*incident.truths_in(series), *incident.roots_in(series)):
            path = tree / truth.file
            found = body(text_of(path), truth.function) if path.exists() else ""
            if not stands(truth, found):
                missing.append(f"{incident.name}: {truth.file}: {truth.function}: {truth.text}")
    assert missing == []


def test_every_program_has_its_truth_and_every_truth_its_program() -> None:
    """Nothing is left over on either side, and every series has an answer to every incident."""
    assert sorted(INCIDENTS) == sorted(path.stem for path in PROGRAMS.glob("*.c"))
    for incident in INCIDENTS.values():
        for series in SERIES:
            assert incident.truths_in(series), (incident.name, series)


def test_the_deciding_half_is_part_of_the_condition() -> None:
    """An atom is an operand of its condition, not the whole of it."""
    for incident in INCIDENTS.values():
        for truth in (*incident.truths, *incident.roots):
            if truth.atom is not None:
                assert truth.atom in truth.text, incident.name
                assert truth.atom != truth.text, incident.name


def test_the_named_incidents_are_as_many_as_promised() -> None:
    """At least twelve, and at least twice as many in all."""
    assert len(NAMED) >= 12
    assert len(INCIDENTS) >= 24


def test_programs_are_short() -> None:
    """Under 60 lines each, so that a reader sees the world and the failure at one glance."""
    for path in PROGRAMS.glob("*.c"):
        assert len(path.read_text().splitlines()) < 60, path.name
