"""What a case holds, as label and text pairs for a person."""

import shlex

from kwhy.case.casefile import CaseFile
from kwhy.case.evidence import PAGE


def printable(text: str) -> str:
    """Text out of a case, safe to print: no control characters that a terminal would obey."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def summary(case: CaseFile) -> list[tuple[str, str]]:
    """(label, text) rows: kernel, question, rounds, memory, blobs, answers."""
    facts = case.facts
    rows = [("kernel", f"{facts.release} {facts.arch} (build-id {facts.build_id or 'unknown'})")]
    if facts.target:
        rows.append(("target", facts.target))
    for key, value in sorted(facts.question.items()):
        rows.append((key[:10], str(value)))
    for one, places in zip(case.manifest.rounds, case.manifest.round_pages, strict=True):
        size = sum(place.size for place in places)
        lost = sum(one.lost.values())
        text = f"{shlex.join(one.command)}: {size} bytes of trace from {len(places)} CPUs"
        rows.append(("round", f"{text}, {lost} events lost, {len(one.probes)} probes"))
    pages = case.manifest.memory_pages
    rows.append(("memory", f"{pages} pages ({pages * PAGE >> 10} KiB)"))
    for blob in case.manifest.blobs:
        rows.append(
            ("blob", f"{blob.name} ({blob.size} bytes)" if blob.entry else f"{blob.name}: none")
        )
    rows.append(("answers", f"{len(case.answers)} from debug info and source"))
    return [(label, printable(value)) for label, value in rows]
