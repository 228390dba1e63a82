"""What the manual says about an errno of a system call.

Looks in the pages of the desk, then in those that the lab has fetched. The answer is a fact about
the desk and not about the target, so it goes through ``Evidence.answer``: a saved case keeps the
words that were found when it was made.
"""

import dataclasses
import gzip
import importlib
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from kwhy.errors import InputError
from kwhy.report import roff
from kwhy.verdict import FailedCall, ManualParagraph, Verdict

PAGE_LIMIT: Final = 4 << 20  # bytes of one page, unpacked; the largest page of section 2 has 150 KB

_PAIR: Final = 2  # page and text

# System calls without a page of their own name, also not a link (checked against man-pages 6.03).
_PAGES: Final = {
    "newfstatat": "stat",
    "newfstat": "stat",
    "newstat": "stat",
    "newlstat": "stat",
    "newuname": "uname",
    "pread64": "pread",
    "pwrite64": "pwrite",
    "umount": "umount2",
    "sendfile64": "sendfile",
    "quotactl_fd": "quotactl",
    "set_mempolicy_home_node": "mbind",
    "io_pgetevents": "io_getevents",
    "epoll_ctl_old": "epoll_ctl",
    "epoll_wait_old": "epoll_wait",
    "futex_waitv": "futex",
    "fadvise64": "posix_fadvise",
}

# ioctl(2) lists only what every device may answer; the rest is told request by request.
_TERMINAL: Final = ("ioctl_tty(2)", "termios(3)")
_IOCTLS: Final = {
    0x5401: ("tcgetattr(3)",),
    0x5402: ("tcsetattr(3)",),
    0x5403: ("tcsetattr(3)",),
    0x5404: ("tcsetattr(3)",),
    0x5409: ("tcsendbreak(3)",),
    0x540A: ("tcflow(3)",),
    0x540B: ("tcflush(3)",),
    0x540F: ("tcgetpgrp(3)",),
    0x5410: ("tcsetpgrp(3)",),
    0x5429: ("tcgetsid(3)",),
    0x40049409: ("ioctl_ficlone(2)",),
    0x4020940D: ("ioctl_ficlonerange(2)",),
    0xC0189436: ("ioctl_fideduperange(2)",),
    0xC020660B: ("ioctl_fiemap(2)",),
}
_TTY: Final = 0x54
_IOCTL_TYPES: Final = {_TTY: _TERMINAL, 0x4B: ("ioctl_console(2)",), 0xB7: ("ioctl_ns(2)",)}
# Where job control refuses a background process, only read(2) tells what EIO means.
_KINDRED: Final = {("tty", "EIO"): ("read(2)",)}


class Answers(Protocol):
    """The part of ``Evidence`` that is needed here."""

    def answer(self, key: str, compute: Callable[[], Any]) -> Any: ...


def attach(verdict: Verdict, evidence: Answers | None = None) -> Verdict:
    """``verdict`` with the manual's paragraphs on its call and errno (none found: unchanged).

    They are about the kernel's own refusals, not about one made before it was entered.
    """
    call = verdict.call
    if call.barred:
        return verdict
    request = _request(call)
    key = f"manual/{call.syscall}/{call.errno}" + (f"/{request:#x}" if request is not None else "")

    def compute() -> list[list[str]]:
        return [[p.page, p.text] for p in paragraphs(call.syscall, call.errno, request)]

    pairs = evidence.answer(key, compute) if evidence is not None else compute()
    found = tuple(_kept(pair) for pair in (pairs if isinstance(pairs, list) else [pairs]))
    return dataclasses.replace(verdict, manual=found) if found else verdict


def _kept(pair: Any) -> ManualParagraph:
    """One paragraph as ``attach`` keeps it. Raises InputError for what only a broken case holds."""
    if isinstance(pair, list) and len(pair) == _PAIR and all(isinstance(x, str) for x in pair):
        return ManualParagraph(page=pair[0], text=pair[1])
    raise InputError("damaged case file: its manual paragraphs are not pairs of text")


def paragraphs(
    syscall: str, errno: str, request: int | None = None, roots: Sequence[Path] | None = None
) -> list[ManualParagraph]:
    """The paragraphs on ``errno``: of the system call's page, else of errno(3).

    ``request`` is the second argument of an ioctl: it leads to the library function or the page
    of that device. ``roots`` are manual trees (``/usr/share/man``); None means wherever there
    are pages.
    """
    trees = list(_roots() if roots is None else roots)
    found: list[ManualParagraph] = []
    for page in _pages(syscall, request):
        found += _of_page(page, errno, trees)
    if not found:
        found = _of_page("errno(3)", errno, trees, "DESCRIPTION")
        kin = "tty" if request is not None and _device(request) == _TTY else syscall
        for page in _KINDRED.get((kin, errno), ()):
            found += _of_page(page, errno, trees)
    return found


def _request(call: FailedCall) -> int | None:
    if call.syscall != "ioctl" or len(call.args) < 2:
        return None
    try:
        return int(call.args[1], 16) & 0xFFFFFFFF
    except ValueError:
        return None


def _device(request: int) -> int:
    """The type byte of an ioctl request (include/uapi/asm-generic/ioctl.h): the kind of device."""
    return (request >> 8) & 0xFF


def _pages(syscall: str, request: int | None) -> Iterator[str]:
    """The pages to look in, most specific first."""
    if request is not None:
        yield from _IOCTLS.get(request, ())
        yield from _IOCTL_TYPES.get(_device(request), ())
    yield f"{_PAGES.get(syscall, syscall)}(2)"


def _of_page(
    page: str, errno: str, roots: Sequence[Path], title: str = "ERRORS"
) -> list[ManualParagraph]:
    source, page = _load(page, roots)
    if source is None:
        return []
    found = []
    for entry in roff.errors(roff.section(source, title)):
        if errno in entry.errnos and entry.paragraphs:
            text = "\n".join(entry.paragraphs)
            found.append(
                ManualParagraph(
                    page=page, text=f"[{entry.context}] {text}" if entry.context else text
                )
            )
    return found


def _load(page: str, roots: Sequence[Path]) -> tuple[str | None, str]:
    """The source of ``page`` ("open(2)") and the name of the page it really is, links followed."""
    for root in roots:
        name = page
        for _ in range(4):  # a link to a link is the most there is
            match = re.fullmatch(r"([\w.+-]+)\((\d\w*)\)", name)
            source = _read(root / f"man{match[2][0]}" / f"{match[1]}.{match[2]}") if match else None
            if source is None:
                break
            target = roff.redirect(source)
            if target is None:
                return source, name
            stem, _, number = Path(target).name.partition(".")
            name = f"{stem}({number})"
    return None, page


def _read(path: Path) -> str | None:
    """A page's text, packed or not; None when there is none or it is damaged."""
    openers: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
    for suffix, opener in openers.items():
        try:
            with opener(path.with_name(path.name + suffix), "rb") as file:
                data: bytes = file.read(PAGE_LIMIT)
        except (OSError, EOFError, zlib.error, lzma.LZMAError):
            continue
        return data.decode("utf-8", "replace")
    return None


def _roots() -> Iterator[Path]:
    yield from (Path("/usr/share/man"), Path("/usr/local/share/man"))
    lab = _lab_pages()
    if lab is not None:
        yield lab


def _lab_pages() -> Path | None:
    """The manual tree of the lab's cache, when the lab is there and has fetched one."""
    try:
        found = importlib.import_module("kwhy.lab.manual").manual_dir()
    except Exception:  # an optional nicety: no failure of the lab may cost the verdict
        return None
    return Path(found) if found else None
