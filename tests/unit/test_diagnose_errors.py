"""Which numbers are error numbers, told from the instructions that ran."""

from types import SimpleNamespace
from typing import cast

import pytest
from tests.unit.flow_build import ARCH

from kwhy.diagnose.errors import made
from kwhy.kernel.model import Kernel
from kwhy.kernel.source import SourceFile

SOURCE = "int may(int a)\n{\n\treturn a ? 0 : -EPERM;\n}\nint search(int a)\n{\n\treturn -1;\n}\n"
MAY, SEARCH = 3, 7


def is_error(code: str, number: int, line: int = SEARCH) -> bool:
    """Whether ``number`` is one in a run of ``code``, which stands on a line of the source."""
    frame = SimpleNamespace(file="toy.c", line=line)
    kernel = SimpleNamespace(
        frames=lambda address: [frame],
        parsed=lambda file: SourceFile(file, SOURCE),
        source=lambda file: SOURCE,
    )
    return made(cast(Kernel, kernel), ARCH.decode(bytes.fromhex(code), 0x1000))(number)


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("b8fbffffff", -5),  # mov eax, -5
        ("48c7c0fbffffff", -5),  # mov rax, -5
        ("83e0fb", -5),  # and eax, -5: of a mask
        ("83c0ea", -22),  # add eax, -22
        ("6aea", -22),  # push -22
        ("48c745f0eaffffff", -22),  # mov [rbp - 0x10], -22
    ],
)
def test_a_constant_that_is_written_is_an_error(code: str, number: int) -> None:
    """In a register, in memory, or by a mask."""
    assert is_error(code, number)
    assert not is_error(code, -6)


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("488d58f0", -16),  # lea rbx, [rax - 0x10]: the structure around a member
        ("8b45f0", -16),  # mov eax, [rbp - 0x10]
        ("4883c480", -128),  # add rsp, -0x80
        ("83f8fb", -5),  # cmp eax, -5
    ],
)
def test_what_leads_to_memory_or_is_only_compared_is_none(code: str, number: int) -> None:
    """Offsets are as small as errors."""
    assert not is_error(code, number)


@pytest.mark.parametrize("code", ["b8ffffffff", "83c8ff", "19c0", "83e801", "8d40ff", "ffc8"])
def test_minus_one_is_an_error_where_the_source_says_so(code: str) -> None:
    """``cap_raised(...) ? 0 : -EPERM`` becomes a subtraction; a search returns -1 as well."""
    assert is_error(code, -1, MAY)
    assert not is_error(code, -1, SEARCH)


def test_a_fault_is_an_error_that_no_instruction_makes() -> None:
    """The handler of the fault writes it."""
    assert is_error("90", -14)
