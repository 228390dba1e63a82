"""What a report tells besides the reason: how sure it is, comments, the manual, the kernel log."""

from typing import Final

from kwhy.report import words
from kwhy.report.page import Page
from kwhy.verdict import Evidence, KernelId, Verdict

_MANUAL: Final = 4  # paragraphs shown; JSON has them all
_LOG: Final = 12  # lines of the kernel log shown
_OTHERS: Final = 8


def add(page: Page, verdict: Verdict) -> None:
    """Add these sections, each only where there is something to tell."""
    _sure(page, verdict)
    _comments(page, verdict)
    _manual(page, verdict)
    _kernel_log(page, verdict)
    _others(page, verdict)


def _sure(page: Page, verdict: Verdict) -> None:
    evidence = verdict.evidence
    page.heading("how sure:", f" {verdict.confidence}, {words.CONFIDENCE[verdict.confidence]}")
    parts = [
        words.count(evidence.rounds, "recording"),
        words.count(evidence.events, "event"),
        f"{evidence.lost:,} lost" if evidence.lost else "none lost",
        words.count(len(evidence.probes), "probe") if evidence.probes else "no probes",
    ]
    if evidence.emulated:
        parts.append(f"{words.count(evidence.emulated, 'instruction')} executed offline")
    page.write((f"evidence: {', '.join(parts)}", ""), indent=2, hang=4)
    add_ground(page, verdict.kernel, evidence)


def add_ground(page: Page, kernel: KernelId, evidence: Evidence) -> None:
    """What every kind of answer ends its account with: the kernel, the probes, what was missing."""
    page.write(
        (f"kernel: {kernel.release} {kernel.arch}", ""),
        (f", build-id {kernel.build_id[:12]}" if kernel.build_id else "", "dim"),
        indent=2,
        hang=4,
    )
    for probe in evidence.probes:
        page.write((f"probe: {probe}", ""), indent=2, hang=4)
    for note in evidence.notes:
        page.write((f"note: {note}", ""), indent=2, hang=4)


def _comments(page: Page, verdict: Verdict) -> None:
    """The comments above the deciding functions: often the reason behind the reason."""
    for place in (verdict.origin, verdict.root):
        if place is None or not place.comment:
            continue
        function = place.inlined[0] if place.inlined else place.function
        page.heading(f"comment above {function}():")
        for line in _uncommented(place.comment):
            page.write((line, "green"), indent=2)


def _uncommented(comment: str) -> list[str]:
    """The lines of a C comment without its asterisks."""
    lines = [line.strip() for line in comment.strip().split("\n")]
    bare = []
    for raw in lines:
        line = raw.removeprefix("/**").removeprefix("/*").removeprefix("//")
        line = line.removesuffix("*/") if line.endswith("*/") else line
        line = line.removeprefix("*") if not raw.startswith("/*") else line
        bare.append(line.strip() if line.strip() else "")
    while bare and not bare[0]:
        bare.pop(0)
    while bare and not bare[-1]:
        bare.pop()
    return bare


def _manual(page: Page, verdict: Verdict) -> None:
    pages: dict[str, list[str]] = {}
    for entry in verdict.manual[:_MANUAL]:
        pages.setdefault(entry.page, []).append(entry.text)
    for name, texts in pages.items():
        page.heading(f"manual, {name}, {verdict.call.errno}:")
        for text in texts:
            for number, paragraph in enumerate(text.split("\n")):
                lead = "- " if len(texts) > 1 and number == 0 else ""
                hang = 4 if len(texts) > 1 else 2
                page.write((lead + paragraph, ""), indent=2 if lead else hang, hang=hang)
    more = len(verdict.manual) - _MANUAL
    if more > 0:
        page.write((f"and {words.count(more, 'more paragraph')} in that page", "dim"), indent=2)


def _kernel_log(page: Page, verdict: Verdict) -> None:
    if not verdict.kmsg:
        return
    page.heading("kernel log at that moment:")
    for line in verdict.kmsg[-_LOG:]:
        page.write((line, ""), indent=2, hang=4)
    if len(verdict.kmsg) > _LOG:
        page.write((f"({len(verdict.kmsg) - _LOG} earlier lines in --json)", "dim"), indent=2)


def _others(page: Page, verdict: Verdict) -> None:
    if not verdict.others:
        return
    page.heading("other calls that failed in this run:", " (--syscall, --errno choose one)")
    for other in verdict.others[:_OTHERS]:
        times = f" ×{other.count}" if other.count > 1 else ""
        who = f" in {other.comm}" if other.comm and other.comm != verdict.call.comm else ""
        why = f": {other.why}" if other.why else ""
        page.write((f"{other.syscall} {other.errno}{times}{who}{why}", ""), indent=2, hang=4)
    more = len(verdict.others) - _OTHERS
    if more > 0:
        page.write((f"and {more} more", "dim"), indent=2)
