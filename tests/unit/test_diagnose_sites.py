"""A branch in the source: whether its condition held, which case it went to."""

from types import SimpleNamespace
from typing import cast

import pytest

from kwhy.diagnose.sites import Site, case_makes, locate
from kwhy.diagnose.truth import truth
from kwhy.flow.explore import Decision
from kwhy.flow.terms import Term, sym
from kwhy.kernel.model import Kernel
from kwhy.kernel.source import SourceFile

FILE = "toy.c"
SOURCE = """\
int check(struct toy *toy, unsigned int flags, int mode)
{
	int error = 0;

	if (toy_busy(toy) || toy_dead(toy))
		goto out;
	toy_use(toy);
	if (flags & TOY_READ && toy_full(toy))
		return -ENOSPC;
	toy_fill(toy);
	if (IS_ERR(toy))
		return PTR_ERR(toy);
	if (!PAGE_ALIGNED(mode))
		error = -EINVAL;
	switch (mode) {
	case TOY_OLD:
		error = -EOPNOTSUPP;
		break;
	case TOY_NEW:
		error = -EINVAL;
		if (toy->count)
			error = toy_renew(toy);
		break;
	default:
		return -ENOTTY;
	}
	late = !toy_wait(toy);
	if (late)
		error = -ETIME;
	count = toy_count(toy);
	if (count)
		error = -EBUSY;
out:
	return error;
}
"""
"""An address of its code is the number of the line that it belongs to."""


def line_of(text: str) -> int:
    """Where ``text`` first stands."""
    return SOURCE[: SOURCE.index(text)].count("\n") + 1


@pytest.fixture
def kernel() -> Kernel:
    """One function, one address a line."""
    parsed = SourceFile(FILE, SOURCE)
    columns = {
        number: line.index("(") + 1
        for number, line in enumerate(SOURCE.splitlines(), 1)
        if line.strip().startswith(("if (", "switch ("))
    }

    def frames(address: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(
            function="check", file=FILE, line=address, column=columns.get(address, 1)
        )]  # fmt: skip

    symbols = SimpleNamespace(
        at=lambda address: SimpleNamespace(name="check", address=0),
        vmlinux=SimpleNamespace(variants=lambda name: ()),
    )
    return cast(
        Kernel, SimpleNamespace(frames=frames, parsed=lambda file: parsed, symbols=symbols)
    )


def site(kernel: Kernel, text: str) -> Site:
    """The condition that begins on the line of ``text``."""
    found = locate(kernel, line_of(text))
    assert found.condition is not None and found.line == line_of(text)
    return found


def branch(op: str = "ne", left: Term | None = None, right: Term = 0) -> Decision:
    """A taken branch that compared; by default something that has no name in the source."""
    return Decision(1, "branch", True, (op, sym("local", 7) if left is None else left, right, 8), 2)


OUT, USE = "return error;", "toy_use(toy);"


@pytest.mark.parametrize(
    ("after", "other", "held"),
    [(OUT, USE, True), (USE, OUT, False)],
)
def test_an_if_that_leaves_is_known_by_what_stands_right_behind_it(
    kernel: Kernel, after: str, other: str, held: bool
) -> None:
    """``a || b`` with a goto: no code is of the statement itself, the edge goes to its label."""
    here = site(kernel, "toy_busy")
    ways = [line_of(after)], [line_of(other)]
    assert truth(kernel, here, branch(), *ways) is held


def test_the_statement_that_makes_the_error_is_where_the_branch_led(kernel: Kernel) -> None:
    """Where lines tell nothing, the error does: it was made, so the way went there."""
    here = site(kernel, "TOY_READ")
    assert truth(kernel, here, branch(), [], [], "ENOSPC") is True
    assert truth(kernel, here, branch(), [], [], "EBADF") is None


def test_a_chain_that_goes_on_asking_was_not_cut_short(kernel: Kernel) -> None:
    """The other way of ``a || b`` asks b: so a was true."""
    here = site(kernel, "toy_busy")
    assert truth(kernel, here, branch(), [], [line_of("toy_busy")]) is True


def test_error_pointers_are_compared_with_the_highest_addresses(kernel: Kernel) -> None:
    """IS_ERR() is an unsigned comparison: above is true."""
    here = site(kernel, "IS_ERR")
    assert truth(kernel, here, branch("ugt", right=(1 << 64) - 4096), [], []) is True
    assert truth(kernel, here, branch("ule", right=(1 << 64) - 4096), [], []) is False


def test_a_variable_that_holds_a_truth_is_not_what_the_machine_compares(kernel: Kernel) -> None:
    """``late = !toy_wait(toy)``: the machine finds 0 where ``late`` is true."""
    assert truth(kernel, site(kernel, "if (late)"), branch("eq"), [], [], "ETIME") is True
    assert truth(kernel, site(kernel, "if (late)"), branch("eq"), [], []) is None
    assert truth(kernel, site(kernel, "if (count)"), branch("eq"), [], [], "EBUSY") is False


def test_what_a_predicate_compares_inside_is_not_its_truth(kernel: Kernel) -> None:
    """``!PAGE_ALIGNED(x)``: the machine finds bits of x that are not 0; only the lines tell."""
    here = site(kernel, "PAGE_ALIGNED")
    assert truth(kernel, here, branch(), [], [], guess=False) is None
    then = line_of("error = -EINVAL")
    assert truth(kernel, here, branch(), [then], [line_of("switch")], guess=False) is True
    assert truth(kernel, here, branch(), [line_of("switch")], [then], guess=False) is False


@pytest.mark.parametrize(
    ("label", "error", "enough"),
    [
        ("TOY_OLD", "EOPNOTSUPP", True),
        ("TOY_NEW", "EINVAL", False),  # it asks something behind that
        ("TOY_OLD", "EINVAL", False),
        ("default", "ENOTTY", True),
        ("23", "ENOTTY", True),  # a bare number may be any of them
        ("23", "EINVAL", False),
    ],
)
def test_a_case_is_enough_for_the_error_that_it_makes(
    kernel: Kernel, label: str, error: str, enough: bool
) -> None:
    """Not where it asks something after, nor for another's error."""
    assert case_makes(kernel, site(kernel, "switch"), label, error) is enough
