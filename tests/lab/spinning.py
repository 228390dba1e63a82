"""Threads that spin in a guest, in known ways, and the question about them."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.desk import Outcome, kwhy, run_in

from kwhy import lab
from kwhy.lab.build import build_module
from kwhy.lab.kernels import by_release
from kwhy.lab.spins import CONTROL, MODULE, ON_ITS_OWN, WAIT_CONTROL, WAIT_MODULE

PID = "/tmp/spinner"


def insert(guest: lab.Guest) -> None:
    """Put the modules into the guest."""
    kernel = by_release(guest.release)
    assert kernel is not None
    with lab.open_link(guest, probe=False) as link:
        for module in (MODULE, WAIT_MODULE):
            name = module.with_suffix(".ko").name
            link.put(build_module(kernel, module), name)
            assert 0 == run_in(link, "insmod", name)[0]


@contextmanager
def spinning(guest: lab.Guest, command: str) -> Iterator[int]:
    """A thread that runs a shell command on the second processor; it is released at the end."""
    inner = f"echo $$ > {PID}.new; mv {PID}.new {PID}; {command}"
    outer = (
        f"rm -f {PID}; setsid {' '.join(ON_ITS_OWN)} sh -c '{inner}' < /dev/null > /dev/null 2>&1 &"
        f" while ! test -s {PID}; do sleep 0.05; done; sleep 0.2; cat {PID}"
    )
    with lab.open_link(guest, probe=False) as link:
        status, out, err = run_in(link, "sh", "-c", outer)
        assert (0, "") == (status, err)
        try:
            yield int(out)
        finally:
            over = f"echo release | tee {CONTROL} > {WAIT_CONTROL}; kill -9 {int(out)}"
            wait = f"while test -d /proc/{int(out)}; do sleep 0.05; done"
            run_in(link, "sh", "-c", f"{over}; {wait}")


def spin(guest: lab.Guest, tid: int, *options: str) -> Outcome:
    """Ask."""
    answer = kwhy("spin", str(tid), "--lab", guest.name, "--json", *options)
    assert answer.out, answer.err
    return answer
