"""What an answer is: one file per kind; ``common`` holds what they share."""

from kwhy.verdict.common import JSON, SCHEMA, Confidence, Evidence, KernelId
from kwhy.verdict.fail import (
    Candidate,
    ChainLink,
    Condition,
    Excerpt,
    FailedCall,
    Instruction,
    ManualParagraph,
    Mark,
    MarkKind,
    Operand,
    Origin,
    OtherFailure,
    Root,
    Statement,
    Verdict,
)

__all__ = [
    "JSON",
    "SCHEMA",
    "Candidate",
    "ChainLink",
    "Condition",
    "Confidence",
    "Evidence",
    "Excerpt",
    "FailedCall",
    "Instruction",
    "KernelId",
    "ManualParagraph",
    "Mark",
    "MarkKind",
    "Operand",
    "Origin",
    "OtherFailure",
    "Root",
    "Statement",
    "Verdict",
]
