"""Evidence, live or saved, behind one interface."""

from kwhy.case.evidence import JSON, Evidence, Facts, MissingMemory, Round

__all__ = ["JSON", "Evidence", "Facts", "MissingMemory", "Round"]
