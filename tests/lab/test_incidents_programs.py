"""The incidents fail as they say, on every kernel, without kwhy looking on."""

import errno
import os
from collections.abc import Callable

from tests.lab.desk import program, run_in

from kwhy.lab.incidents import INCIDENTS
from kwhy.link import Link

SILENT = ("mkdir_exist",)


def test_each_program_fails_with_its_errno(links: Callable[[str], Link], series: str) -> None:
    """Status 1 and the error's text, twice in a row: nothing is left over from the first time."""
    found, expected = {}, {}
    link = links(series)
    for name, incident in INCIDENTS.items():
        link.put(program(name))
        text = "" if name in SILENT else os.strerror(getattr(errno, incident.errno))
        expected[name] = [(1, text)] * 2
        runs = [run_in(link, f"./{name}") for _ in range(2)]
        found[name] = [(status, err.strip().rpartition(": ")[2]) for status, _, err in runs]
    assert expected == found
