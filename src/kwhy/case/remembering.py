"""The part of Evidence that every maker shares: answers are computed once and kept."""

import json
from collections.abc import Callable
from pathlib import Path

from kwhy.case.evidence import JSON, Facts, Round


class Remembering:
    """Facts, rounds, pages, blobs and answers held in memory, as ``save`` writes them."""

    def __init__(self, facts: Facts | None = None) -> None:
        self.facts = facts or Facts()
        self.rounds: list[Round] = []
        self.pages: dict[int, bytes] = {}
        self.blobs: dict[str, bytes | None] = {}
        self.answers: dict[str, JSON] = {}

    def blob(self, name: str) -> bytes | None:
        """A named fact; None if the target does not have it (or may not give it)."""
        return self.derived(name, lambda: self._blob(name))

    def _blob(self, name: str) -> bytes | None:
        """What the maker knows of a blob that nobody asked for before."""
        return None

    def derived(self, name: str, compute: Callable[[], bytes | None]) -> bytes | None:
        """A binary fact worked out at the desk: computed once, then part of the case."""
        if name not in self.blobs:
            self.blobs[name] = compute()
        return self.blobs[name]

    def answer(self, key: str, compute: Callable[[], JSON]) -> JSON:
        """A JSON fact worked out at the desk: computed once, then part of the case.

        What comes back is what a saved case would give (tuples are lists), so that live and saved
        explanations cannot differ by a type.
        """
        if key not in self.answers:
            self.answers[key] = json.loads(json.dumps(compute()))
        return self.answers[key]

    def save(self, path: Path) -> None:
        """Write everything that was handed out to one ``.kwhy`` file (mode 0600)."""
        from kwhy.case.writer import write_case

        write_case(path, self)
