"""Which kernel this is, and where it was loaded: release, build-id and the KASLR slide."""

from dataclasses import dataclass

from kwhy.case.evidence import Evidence
from kwhy.kernel.elf import build_id_of, notes


@dataclass(frozen=True)
class Identity:
    """``slide`` is what KASLR added to every link-time address (bytes), None when not known."""

    release: str
    build_id: str
    arch: str
    slide: int | None
    stext: int | None


def vmcoreinfo_text(blob: bytes | None) -> bytes | None:
    """The text of VMCOREINFO: ``blob`` itself, or the note in ELF notes (/proc/kcore's PT_NOTE)."""
    return next((desc for name, _kind, desc in notes(blob or b"") if name == b"VMCOREINFO"), blob)


def vmcoreinfo(blob: bytes | None) -> dict[str, str]:
    """The KEY=VALUE lines of VMCOREINFO (Documentation/admin-guide/kdump/vmcoreinfo.rst)."""
    out: dict[str, str] = {}
    for line in (vmcoreinfo_text(blob) or b"").decode("ascii", "replace").splitlines():
        key, equals, value = line.strip("\0").partition("=")
        if equals:
            out[key] = value
    return out


def _hex(text: str | None) -> int | None:
    try:
        return None if text is None else int(text, 16)
    except ValueError:
        return None


def identify(evidence: Evidence) -> Identity:
    """Release and build-id from the target's notes, slide from its VMCOREINFO.

    KERNELOFFSET is printed in hex by arch_crash_save_vmcoreinfo() (arch/x86/kernel/vmcore_info.c,
    before 6.9 machine_kexec_64.c).  Without VMCOREINFO the slide stays None and the symbols have to
    come from /proc/kallsyms.
    """
    info = vmcoreinfo(evidence.blob("vmcoreinfo"))
    build_id = build_id_of(evidence.blob("notes") or b"") or evidence.facts.build_id
    release = info.get("OSRELEASE") or evidence.facts.release
    return Identity(
        release=release,
        build_id=build_id or "",
        arch=evidence.facts.arch or "x86_64",
        slide=_hex(info.get("KERNELOFFSET")),
        stext=_hex(info.get("SYMBOL(_stext)")),
    )
