"""Random kernel functions, garbage for arguments: every run ends, in words, inside its bound."""

import random
from pathlib import Path

import pytest
from tests.lab.conftest import Guests

from kwhy.case.vmcore import VmcoreEvidence
from kwhy.emulate import Caller
from kwhy.errors import UsageError
from kwhy.kernel.model import open_kernel

pytestmark = pytest.mark.lab

FUNCTIONS = 200
BLOCKS = 20_000
GARBAGE = ("0", "1", "-1", "0x1000", "0xdeadbeefdeadbeef", "(long)&schedule", "(long)current",
           "0xffffffff81000000", "0xffff888000000000", '"garbage"')  # fmt: skip


def test_garbage_ends_in_words(guests: Guests, tmp_path: Path) -> None:
    """200 random functions: each returns, or says where and why it cannot go further."""
    path = tmp_path / "guest.core"
    guests("6.12").dump(path)
    kernel = open_kernel(VmcoreEvidence(path))
    caller = Caller(kernel)
    chance = random.Random(612)
    table = kernel.symbols.vmlinux
    ends: dict[str, int] = {}
    done = 0
    while done < FUNCTIONS:
        symbol = table.symbol(chance.randrange(len(table)))
        prototype = kernel.types.prototype(symbol.name) if symbol.code else None
        if prototype is None or "." in symbol.name:
            continue
        arguments = ", ".join(chance.choice(GARBAGE) for _ in prototype.params)
        try:
            outcome = caller.call(f"{symbol.name}({arguments})", limit=BLOCKS)
        except UsageError:
            continue
        assert outcome.returned or outcome.end.reason, symbol.name
        ends[outcome.end.kind] = ends.get(outcome.end.kind, 0) + 1
        done += 1
    path.unlink()
    assert FUNCTIONS == sum(ends.values())
    assert ends["returned"] > FUNCTIONS // 10, ends
