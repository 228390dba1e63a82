"""From the target options to a link, or to the evidence behind it."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kwhy.errors import UsageError

ANSWER_WITHIN = 20.0
"""Seconds until a guest that does not answer is looked at from outside."""


@contextmanager
def connect(args: argparse.Namespace, *, probe: bool = True) -> Iterator[Any]:
    """The link to the target that the options name; it is closed at the end, come what may.

    ``probe`` false leaves the target's features untried: trying the tracer can hang where a
    processor spins.
    """
    if args.core is not None:
        raise UsageError("--core is for verbs that only read memory")
    if args.lab is not None:
        from kwhy import lab

        parts = [p for p, o in (("debug", args.debuginfo), ("source", args.source)) if o == "auto"]
        with lab.connect(args.lab, parts=parts, probe=probe) as connection:
            yield connection.link
        return
    from kwhy.link import reach

    link = reach.ssh(args.host, probe=probe) if args.host else reach.local(probe=probe)
    with link:
        yield link


@contextmanager
def open_evidence(args: argparse.Namespace, *, probe: bool = True) -> Iterator[Any]:
    """What the options name as evidence, for verbs that only read: a case, a dump, or live.

    ``probe`` as for :func:`connect`.
    Closed at the end, come what may. Raises InputError for a file that cannot be used.
    """
    if args.case is not None:
        from kwhy.case.casefile import CaseFile

        yield CaseFile(args.case)
    elif args.core is not None and args.core.is_socket():
        from kwhy.case.monitor import guest_memory

        with guest_memory(args.core, f"the guest of {args.core}") as seen:
            yield seen
    elif args.core is not None:
        from kwhy.case.vmcore import VmcoreEvidence

        yield VmcoreEvidence(args.core)
    elif args.lab is not None and (socket := _mute(args)) is not None:
        from kwhy.case.monitor import guest_memory

        with guest_memory(socket, f"the guest {args.lab}") as seen:
            yield seen
    else:
        from kwhy.case.live import LiveEvidence

        with connect(args, probe=probe) as link:
            yield LiveEvidence(link)


def require_memory(evidence: Any) -> None:
    """Raises FeatureError, which says why, when a live target gives nothing of its memory."""
    from kwhy.case.live import LiveEvidence

    if isinstance(evidence, LiveEvidence):
        evidence.link.read_memory([])


def _mute(args: argparse.Namespace) -> Path | None:
    """QEMU's control socket of a guest that runs but does not answer; None for any other."""
    from kwhy import lab

    guest = lab.find(args.lab)
    if guest is None or guest.answers(min(args.timeout or ANSWER_WITHIN, ANSWER_WITHIN)):
        return None
    return guest.control_socket


def read_again(evidence: Any) -> Any:
    """A fresh reading of a live target's memory; None for what stands still."""
    from kwhy.case.live import LiveEvidence
    from kwhy.case.program import ProgramEvidence

    if isinstance(evidence, ProgramEvidence):
        return evidence.again()
    if not isinstance(evidence, LiveEvidence):
        return None
    fresh = LiveEvidence(evidence.link, evidence.facts)
    fresh.blobs, fresh.answers = evidence.blobs, evidence.answers
    return fresh
