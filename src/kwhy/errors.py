"""What can go wrong for the user: one line that says what is wrong and what to do.

Each class carries the exit code of the command-line contract; ``cli.main`` prints the message and
exits with it. Anything else that reaches the top is a bug.
"""


class KwhyError(Exception):
    """An error the user can act on. ``exit_code`` is the process exit status."""

    exit_code = 1


class NothingToExplain(KwhyError):
    """The command ran, but there is no failure (or stuck task, or loop) to explain."""

    exit_code = 1


class UsageError(KwhyError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


class FeatureError(KwhyError):
    """The target lacks a privilege or a feature; ``feature`` names it."""

    exit_code = 3

    def __init__(self, message: str, feature: str = "") -> None:
        super().__init__(message)
        self.feature = feature


class InputError(KwhyError):
    """A file handed to kwhy (case, vmcore, model) is damaged, hostile or of the wrong kind."""

    exit_code = 4


class LinkError(KwhyError):
    """Contact with the target was lost, or it stopped answering in time."""

    exit_code = 5


FATAL = (InputError, LinkError)
"""What no part of an analysis may take for a mere gap in what it can read."""
