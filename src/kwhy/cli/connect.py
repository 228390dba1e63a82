"""From the target options to a link."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kwhy.errors import UsageError


@contextmanager
def connect(args: argparse.Namespace) -> Iterator[Any]:
    """The link to the target that the options name; it is closed at the end, come what may."""
    if args.core is not None:
        raise UsageError("--core is for verbs that only read memory")
    if args.lab is not None:
        from kwhy import lab

        parts = [p for p, o in (("debug", args.debuginfo), ("source", args.source)) if o == "auto"]
        with lab.connect(args.lab, parts=parts) as connection:
            yield connection.link
        return
    from kwhy.link import reach

    link = reach.ssh(args.host) if args.host else reach.local()
    with link:
        yield link
