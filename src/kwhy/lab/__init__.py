"""The lab: real Debian kernels in QEMU, fetched on demand and cached by exact version.

``connect("6.12")`` boots a disposable guest, ``connect("box")`` uses the named one; both give a
:class:`~kwhy.lab.target.Connection` with the guest and a link to an agent in it. ``start`` boots a
guest, ``open_link`` reaches one.
"""

from kwhy.lab.boot import Settings
from kwhy.lab.guest import Guest, find, running_guests
from kwhy.lab.target import Connection, connect, open_link, start

__all__ = [
    "Connection",
    "Guest",
    "Settings",
    "connect",
    "find",
    "open_link",
    "running_guests",
    "start",
]
