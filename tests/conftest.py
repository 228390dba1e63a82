"""Shared by all tests: the mark of those under tests/lab, and the table of the incidents.

The tests may run in several processes (pytest-xdist): a cell of the table travels as a property of
its test's report, and the process that prints puts them together.
"""

from pathlib import Path
from typing import Any

import pytest

LAB = Path(__file__).parent / "lab"

CELL = "incident"
"""A test's property: an incident, the way it was asked, the series, and what the verdict was."""

_cells: dict[str, dict[str, dict[str, str]]] = {}  # way: incident: series: word


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything under tests/lab boots a guest; mark it so that `-m 'not lab'` skips it."""
    for item in items:
        if LAB in item.path.parents:
            item.add_marker(pytest.mark.lab)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the cells of a finished test."""
    if report.when == "call":
        for name, cell in report.user_properties:
            if name == CELL:
                assert isinstance(cell, tuple | list)
                incident, way, series, word = cell
                _cells.setdefault(way, {}).setdefault(incident, {})[series] = word


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One table for each way of asking, at the end of the output."""
    for way, rows in sorted(_cells.items()):
        columns = sorted({series for cells in rows.values() for series in cells}, key=_number)
        terminalreporter.section(f"kwhy fail: {way}")
        terminalreporter.line(f"{'':20}" + "".join(f"{series:>22}" for series in columns))
        for incident, cells in sorted(rows.items()):
            line = "".join(f"{cells.get(series, '-'):>22}" for series in columns)
            terminalreporter.line(f"{incident:20}{line}")
        for series in columns:
            words = [cells[series].split()[0] for cells in rows.values() if series in cells]
            tally = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))
            terminalreporter.line(f"{series}: {tally}")


def _number(series: str) -> list[int]:
    """For order: 6.1 comes before 6.12, and 7 after both."""
    return [int(part) for part in series.split(".")]
