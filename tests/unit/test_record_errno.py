"""Names of error numbers, the kernel's own included."""

import pytest

from kwhy.record.errno import errno_name, errno_number, errno_text


@pytest.mark.parametrize(
    ("ret", "name"),
    [(-5, "EIO"), (5, "EIO"), (-11, "EAGAIN"), (-512, "ERESTARTSYS"),
     (-516, "ERESTART_RESTARTBLOCK"), (-530, "ERECALLCONFLICT"), (-4000, "E4000"), (0, None),
     (-4096, None), (1 << 40, None)],
)  # fmt: skip
def test_results_have_names(ret: int, name: str | None) -> None:
    """Results in [-4095, -1] only."""
    assert name == errno_name(ret)


@pytest.mark.parametrize(
    ("text", "number"),
    [("EIO", 5), ("eio", 5), ("EWOULDBLOCK", 11), ("5", 5), ("-5", 5), ("EFOO", None), ("0", None),
     ("99999", None)],
)  # fmt: skip
def test_names_have_numbers(text: str, number: int | None) -> None:
    """As users write them."""
    assert number == errno_number(text)


def test_numbers_have_words() -> None:
    """And unknown ones have none."""
    assert ("I/O error", "") == (errno_text(-5), errno_text(-4000))
