"""What an operation raises when it cannot do as asked; travels to the desk as an ERROR frame."""

from typing import Any, Dict


class AgentError(Exception):
    """``kind`` decides the desk's exception.

    feature: the target lacks a privilege or a feature (``feature`` names it); usage: the request
    makes no sense; command: the command cannot be started; absent: no such fact on this target;
    internal: a bug in the agent.
    """

    def __init__(self, kind: str, message: str, feature: str = "") -> None:
        super(AgentError, self).__init__(message)
        self.kind = kind
        self.message = message
        self.feature = feature

    def as_json(self) -> Dict[str, Any]:
        """The ``error`` object of an ERROR frame."""
        return {"kind": self.kind, "message": self.message, "feature": self.feature}


class Cancelled(Exception):
    """The desk gave the request up, or is gone: undo everything, tell nobody."""
