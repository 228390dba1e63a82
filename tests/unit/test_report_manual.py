"""The manual's words on an errno: pages in the style of the man-pages project, links, fallbacks."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from kwhy.errors import InputError
from kwhy.report import manual, roff
from kwhy.verdict import Evidence, FailedCall, KernelId, Verdict

OPEN = r"""'\" t
.\" a comment
.TH open 2 2023-02-05 "Linux man-pages 6.03"
.SH NAME
open \- open a file
.SH ERRORS
.BR open ()
can fail with the following errors:
.TP
.B EACCES
The requested access to the file is not allowed
.\" commit 30aba6656f61
(See also
.BR path_resolution (7).)
.TP
.BR EAGAIN " or " EWOULDBLOCK " (since Linux 3.1)"
The file\(aqs lock
.I \-1
is \fBheld\fP; see \[lq]locks\[rq].
.IP
A second paragraph.
.TP
.B EACCES
Another reason.
.PP
The following errors are specific to
.RB ( AF_UNIX )
sockets:
.TP
.B ELOOP
Too many links.
.SH VERSIONS
.TP
.B EIO
Not among the errors.
"""
ERRNO = """.SH NAME
errno
.SH DESCRIPTION
.TP 16
.B E2BIG
Argument list too long (POSIX.1-2001).
.TP
.B EIO
Input/output error (POSIX.1-2001).
"""


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A manual tree: packed and plain pages, a link, a damaged page."""
    for section in ("man2", "man3"):
        (tmp_path / section).mkdir()
    (tmp_path / "man2/open.2.gz").write_bytes(gzip.compress(OPEN.encode()))
    (tmp_path / "man2/openat.2").write_text(".so man2/open.2\n")
    (tmp_path / "man2/loop.2").write_text(".so man2/loop.2\n")
    (tmp_path / "man2/torn.2.gz").write_bytes(gzip.compress(OPEN.encode())[:90])
    (tmp_path / "man3/errno.3").write_text(ERRNO)
    (tmp_path / "man2/read.2").write_text(
        ".SH ERRORS\n.TP\n.B EIO\nI/O error.\nThe group is orphaned.\n"
    )
    return tmp_path


def texts(pages: Path, syscall: str, errno: str, request: int | None = None) -> list[str]:
    found = manual.paragraphs(syscall, errno, request, [pages])
    return [f"{p.page} {p.text}" for p in found]


def test_every_paragraph_on_the_errno(pages: Path) -> None:
    """All entries of that errno, fonts and comments gone, words joined as they read."""
    assert [
        "open(2) The requested access to the file is not allowed (See also path_resolution(7).)",
        "open(2) Another reason.",
    ] == texts(pages, "open", "EACCES")


def test_link_names_the_page_it_leads_to(pages: Path) -> None:
    """``.so`` pages are followed; the reader is told the page that has the text."""
    assert ["open(2) Another reason."] == texts(pages, "openat", "EACCES")[1:]


def test_tag_with_two_errnos_and_remark(pages: Path) -> None:
    """``EAGAIN or EWOULDBLOCK (since …)`` is about both; the remark stays, paragraphs apart."""
    expected = (
        "open(2) (since Linux 3.1) The file's lock -1 is held; see “locks”.\nA second paragraph."
    )
    assert [expected] == texts(pages, "open", "EAGAIN")
    assert [expected] == texts(pages, "open", "EWOULDBLOCK")


def test_limiting_sentence_goes_along(pages: Path) -> None:
    """A sentence that limits the rest of the list is part of what the manual says."""
    expected = "open(2) [The following errors are specific to (AF_UNIX) sockets:] Too many links."
    assert [expected] == texts(pages, "open", "ELOOP")


def test_other_sections_do_not_count(pages: Path) -> None:
    """An errno that the page mentions elsewhere is taken from errno(3)."""
    assert ["errno(3) Input/output error (POSIX.1-2001)."] == texts(pages, "open", "EIO")


def test_terminal_ioctl_has_a_kindred_page(pages: Path) -> None:
    """No page of a terminal ioctl explains EIO; read(2) does, for the same job control."""
    assert [
        "errno(3) Input/output error (POSIX.1-2001).",
        "read(2) I/O error. The group is orphaned.",
    ] == texts(pages, "ioctl", "EIO", 0x5403)


@pytest.mark.parametrize("syscall", ["loop", "torn", "nowhere", "../../etc/passwd"])
def test_no_page_is_no_failure(pages: Path, syscall: str) -> None:
    """A missing, damaged or circular page costs the paragraph, not the verdict."""
    assert [] == texts(pages, syscall, "EACCES")


class Saved:
    """A case with one answer to every question."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept
        self.asked: list[str] = []

    def answer(self, key: str, compute: Any) -> Any:
        self.asked.append(key)
        return self.kept


def terminal_eio() -> Verdict:
    call = FailedCall(
        pid=1, tid=1, comm="c", syscall="ioctl", args=("0x3", "0x5403"), ret=-5, errno="EIO"
    )
    return Verdict(
        summary="s",
        confidence="unknown",
        kernel=KernelId(release="6", build_id=""),
        evidence=Evidence(),
        call=call,
        origin=None,
    )


def test_answer_of_a_case_is_kept() -> None:
    """The words found live go into the case: explained elsewhere, the verdict is the same."""
    saved = Saved([["tcsetattr(3)", "kept words"]])
    (paragraph,) = manual.attach(terminal_eio(), saved).manual
    assert ("tcsetattr(3)", "kept words") == (paragraph.page, paragraph.text)
    assert ["manual/ioctl/EIO/0x5403"] == saved.asked


@pytest.mark.parametrize("kept", [5, None, "text", [5], [["a"]], [["a", 5]], {"a": "b"}])
def test_hostile_answer_is_a_damaged_case(kept: Any) -> None:
    """A case can hold any JSON in place of the paragraphs: one sentence says that it is damaged."""
    with pytest.raises(InputError, match="damaged case"):
        manual.attach(terminal_eio(), Saved(kept))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (r"\fBbold\fP \f[I]it\f[] \f(BIx", "bold it x"),
        (r"a\-b \(em \[aq]q\[aq] \e0 \&.x", "a-b — 'q' \\0 .x"),
        (r"\s-1SMALL\s+1 \m[red]c\m[] \*(lqq\*(rq", "SMALL c “q”"),
        (r"text \" comment", "text "),
        (r"\[u2013] \[unknown] end\c", "– end"),
        ("trailing \\", "trailing "),
    ],
)
def test_escapes(source: str, expected: str) -> None:
    """Escapes become the characters that they stand for; unknown ones vanish."""
    assert expected.split() == roff.inline(source).split()


def test_mdoc_list() -> None:
    """Pages in mdoc(7) have the same list with other macros."""
    page = ".Sh ERRORS\n.Bl -tag -width Er\n.It Bq Er EPERM\nSee\n.Xr kill 2 .\n.El\n"
    (entry,) = roff.errors(roff.section(page, "ERRORS"))
    assert (("EPERM",), ["See kill(2)."]) == (entry.errnos, entry.paragraphs)
