"""Shared by all tests: what lies under tests/lab is marked so."""

from pathlib import Path

import pytest

LAB = Path(__file__).parent / "lab"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything under tests/lab boots a guest; mark it so that `-m 'not lab'` skips it."""
    for item in items:
        if LAB in item.path.parents:
            item.add_marker(pytest.mark.lab)
