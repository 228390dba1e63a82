"""``kwhy explore`` on real kernels: a bug of the ring buffer, and one of a module's queue."""

from pathlib import Path

import pytest
from tests.lab.desk import kwhy, own_guest, run_in
from tests.lab.spinning import spin

from kwhy import lab
from kwhy.lab.build import build_module
from kwhy.lab.kernels import by_release
from kwhy.lab.spins import SETTINGS, ring

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MODELS = Path(__file__).parents[2] / "models"
STEPS = ["write", "write", "consume", "write", "consume", "discard", "consume"]


def test_old_bug_is_found_set_off_and_explained() -> None:
    """The fixed kernel has no bad state; with the bug the shortest sequence is found, and done from
    user space it leaves a reader in the loop that kwhy spin explains down to the stale index; and
    what it tells of ending the loop ends it."""
    settings = {"cpus": SETTINGS.cpus, "append": SETTINGS.append}
    with own_guest("6.12", "ring", **settings) as guest:
        model = str(MODELS / "ring_buffer.py")
        clean = kwhy("explore", "--lab", guest.name, "--json", model)
        assert (1, True) == (clean.status, clean.verdict["exhausted"])
        with lab.open_link(guest, probe=False) as link:
            ring.load(link, guest.release)
        found = kwhy("explore", "--lab", guest.name, "--json", model)
        assert (0, True) == (found.status, found.verdict["shortest"])
        assert sorted(STEPS) == sorted(found.verdict["path"])
        with lab.open_link(guest, probe=False) as link:
            tid = ring.detonate(link, found.verdict["path"])
        answer = spin(guest, tid, "--deep").verdict
        trace = f"{ring.ROOT}instances/{ring.INSTANCE}/trace"
        with lab.open_link(guest, probe=False) as link:
            assert 0 == run_in(link, "sh", "-c", f"echo > {trace}")[0]
        after = spin(guest, tid).verdict
    assert ("endless", "observed") == (answer["state"], answer["confidence"])
    assert "tracing_read_pipe" == answer["loop"]["function"]
    assert "trace_empty" in answer["contradiction"]
    decisive = [c for each in answer["deep"] if each["agrees"] for c in each["because"]]
    values = {o["expr"]: o["value"] for c in decisive for o in c["operands"]}
    assert "truncating the trace file" in answer["recovery"][0]
    assert "asleep" == after["state"]
    assert "4080" == values.get("rb_set_head_page()->read"), values


def test_a_queue_that_loses_entries_is_found() -> None:
    """The second model, of a module on kfifo: full looks empty, so five steps lose four entries."""
    source = ring.MODULE.with_name("kwhy_fifo.c")
    with own_guest("6.12", "fifo") as guest:
        kernel = by_release(guest.release)
        assert kernel is not None
        with lab.open_link(guest) as link:
            link.put(build_module(kernel, source), "kwhy_fifo.ko")
            assert 0 == run_in(link, "insmod", "kwhy_fifo.ko")[0]
        model = str(MODELS / "fifo.py")
        found = kwhy("explore", "--lab", guest.name, "--json", model).verdict
        assert ["put", "put", "put", "put", "rewind"] == found["path"]
        changed = kwhy("watch", "--lab", guest.name, "--json", "kwhy_queue", "--", "true")
        assert 1 == changed.status
