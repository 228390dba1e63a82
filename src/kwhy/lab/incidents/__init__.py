"""Incidents: small programs that each make one system call fail for a known reason.

They are the ground truth of the tests and the subjects of ``kwhy demo``. Each program sets up its
own world in a disposable guest, as root, and exits with 1 after the failure (99: its world could
not be set up). ``INCIDENTS`` tells for each why the call fails, as function and source text.
"""

from kwhy.lab.incidents.model import PROGRAMS, Incident, Truth
from kwhy.lab.incidents.table import INCIDENTS, NAMED, carriers

__all__ = ["INCIDENTS", "NAMED", "PROGRAMS", "Incident", "Truth", "carriers"]
