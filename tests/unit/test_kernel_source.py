"""What is read out of kernel source: conditions at a jump's place, statements, functions."""

import json
from pathlib import Path

import pytest

from kwhy.kernel.source import Condition, SourceFile, refine

DATA = Path(__file__).parent / "data" / "kernel"

TTY = """\
/**
 *\t__tty_check_change\t-\tcheck for POSIX terminal changes
 *\t@tty: tty to check
 *
 *\tLocking: ctrl.lock
 */
int __tty_check_change(struct tty_struct *tty, int sig)
{
\tif (tty_pgrp && pgrp != tty_pgrp) {
\t\tif (is_ignored(sig)) {
\t\t\tif (sig == SIGTTIN)
\t\t\t\tret = -EIO;
\t\t} else if (is_current_pgrp_orphaned())
\t\t\tret = -EIO;
\t\telse {
\t\t\tret = -ERESTARTSYS;
\t\t}
\t}
\tif (!tty_pgrp)
\t\ttty_warn(tty, "sig=%d\\n", sig);
\treturn ret;
}
"""


def at(text: str, mark: str, file: str = "x.c") -> Condition | None:
    """The condition at the first character of ``mark`` (``@`` shows the place and is removed)."""
    plain = mark.replace("@", "")
    offset = text.index(plain) + mark.index("@")
    line = text[:offset].count("\n") + 1
    column = offset - (text.rfind("\n", 0, offset) + 1) + 1
    return SourceFile(file, text).condition(line, column)


def need(text: str, mark: str) -> Condition:
    """Like ``at``, when there must be one."""
    found = at(text, mark)
    assert found is not None
    return found


def body(code: str) -> str:
    """``code`` as the body of a function."""
    return "int f(int a, int b)\n{\n" + code + "\n}\n"


def test_a_single_condition_is_named_from_its_parenthesis() -> None:
    """GCC gives the jump of a plain if the place of the "("; then- and else-lines are found."""
    found = need(TTY, "else if @(is_current_pgrp_orphaned())")
    assert ("if", "is_current_pgrp_orphaned()", True) == (found.kind, found.text, found.certain)
    assert "__tty_check_change" == found.function
    assert (14, 16) == (found.then_line, found.else_line)


def test_a_chain_at_its_parenthesis_is_not_certain() -> None:
    """Two operands without side effects may share the place of the "(": both are candidates."""
    found = need(TTY, "if @(tty_pgrp && pgrp")
    assert ("tty_pgrp && pgrp != tty_pgrp", False) == (found.text, found.certain)
    assert ("tty_pgrp", "pgrp != tty_pgrp") == found.atoms
    assert (0, 1) == found.candidates
    assert "opening" == found.how


def test_a_place_inside_an_operand_names_it() -> None:
    """A comparison's own place is inside one operand."""
    found = need(TTY, "pgrp @!= tty_pgrp")
    assert ("pgrp != tty_pgrp", True, "inside") == (found.atom, found.certain, found.how)


def test_negation_is_kept_in_the_atom_and_taken_off_the_core() -> None:
    """`!x` reads as in the source, and says that it is negated."""
    found = need(TTY, "if @(!tty_pgrp)")
    assert ("!tty_pgrp", "tty_pgrp", True) == (found.atom, found.core, found.negated)


def test_plain_code_has_no_condition() -> None:
    """An assignment in a branch is not the branch's condition."""
    assert at(TTY, "ret @= -ERESTARTSYS") is None


def test_likely_is_stripped_and_lines_are_folded() -> None:
    """The condition's text is one line without likely(), unlikely() and comments."""
    code = body("\tif (unlikely(a /* why */ ||\n\t\t     IS_ERR(b)))\n\t\treturn -1;")
    found = need(code, "if (@unlikely")
    assert "a || IS_ERR(b)" == found.text
    assert (3, 4) == (found.start, found.end)
    assert (False, "macro", (0, 1)) == (found.certain, found.how, found.candidates)


def test_an_operator_offers_the_operand_behind_it_first() -> None:
    """The && in front of an operand is its jump's place, unless neighbours were merged."""
    found = need(body("\tif (a && g(b) && !h(a))\n\t\treturn 1;"), "g(b) @&& !h")
    assert (2, 1) == found.candidates


def test_jumps_at_different_places_are_certain_together() -> None:
    """Three operands, three jumps at three places: each names its own."""
    code = body("\tif (a && g(b) && !h(a))\n\t\treturn 1;")
    jumps = [need(code, mark) for mark in ("if @(a", "a @&& g", "g(b) @&& !h")]
    told = refine(jumps)
    assert ["a", "g(b)", "!h(a)"] == [jump.atom for jump in told]
    assert [True, True, True] == [jump.certain for jump in told]


def test_jumps_that_share_a_place_share_their_operands() -> None:
    """A merged pair keeps two candidates, the operand behind it becomes certain."""
    code = body("\tif (a && b && h(a))\n\t\treturn 1;")
    opening, last = need(code, "if @(a"), need(code, "b @&& h")
    told = refine([opening, opening, last])
    assert [(0, 1), (0, 1), (2,)] == [jump.candidates for jump in told]
    assert "h(a)" == told[2].atom


def test_fewer_jumps_than_operands_tell_nothing_more() -> None:
    """When the compiler threaded one operand away, nothing is claimed."""
    code = body("\tif (a && g(b) && !h(a))\n\t\treturn 1;")
    jumps = [need(code, mark) for mark in ("if @(a", "g(b) @&& !h")]
    assert jumps == refine(jumps)


@pytest.mark.parametrize(
    ("code", "mark", "kind", "text"),
    [
        ("\twhile (a < b)\n\t\ta++;", "while @(a", "while", "a < b"),
        ("\tdo {\n\t\ta++;\n\t} while (a < b);", "while @(a", "do", "a < b"),
        ("\tfor (a = 0; a < b; a++)\n\t\tg();", "a @< b", "for", "a < b"),
        ("\tswitch (a & 3) {\n\tcase 1:\n\t\treturn 2;\n\t}", "switch @(a", "switch", "a & 3"),
        ("\treturn a ? g() : h();", "g() @: h", "?:", "a"),
        ("\treturn a && b;", "a @&& b", "return", "a && b"),
        ("\ta = g() || h();", "g() @|| h", "expression", "g() || h()"),
        ("\treturn unlikely(a && b);", "@unlikely", "return", "a && b"),
        ("\tif (a)\n\t\tWARN_ON_ONCE(b > 3);", "@WARN_ON_ONCE", "macro", "WARN_ON_ONCE(b > 3)"),
        (
            "\tlist_for_each_entry(p, &head, list) {\n\t\tg(p);\n\t}",
            "@list_for_each_entry",
            "for",
            "list_for_each_entry(p, &head, list)",
        ),
    ],
)
def test_every_kind_of_condition(code: str, mark: str, kind: str, text: str) -> None:
    """Loops, switches, ?:, chains that are values, macros that test, loops made by macros."""
    found = need(body(code), mark)
    assert (kind, text) == (found.kind, found.text)


def test_guards_are_outermost_first_with_their_side() -> None:
    """The path to a statement by the source alone."""
    file = SourceFile("x.c", TTY)
    found = [(guard.condition.text, guard.side) for guard in file.guards(14)]
    expected = [
        ("tty_pgrp && pgrp != tty_pgrp", "then"),
        ("is_ignored(sig)", "else"),
        ("is_current_pgrp_orphaned()", "then"),
    ]
    assert expected == found


def test_the_comment_above_a_function_comes_without_marks() -> None:
    """kernel-doc above the function, and nothing for a function that has none."""
    file = SourceFile("x.c", TTY + "\nint g(void)\n{\n\treturn 0;\n}\n")
    comment = file.comment_above("__tty_check_change")
    assert comment.startswith("\t__tty_check_change\t-\tcheck for POSIX")
    assert comment.endswith("Locking: ctrl.lock")
    assert "" == file.comment_above("g")


def test_system_calls_carry_their_dwarf_names() -> None:
    """SYSCALL_DEFINE3(ioctl, ...) is __do_sys_ioctl; the wrappers' names find it too."""
    text = (
        "/* why */\nSYSCALL_DEFINE3(ioctl, unsigned int, fd, unsigned int, cmd,\n"
        "\t\tunsigned long, arg)\n{\n\tif (!fd)\n\t\treturn -EBADF;\n\treturn 0;\n}\n"
        "COMPAT_SYSCALL_DEFINE1(foo, int, x)\n{\n\treturn x;\n}\n"
        "SYSCALL_DEFINE0(getpid)\n{\n\treturn 1;\n}\n"
    )
    file = SourceFile("fs/ioctl.c", text)
    assert ["__do_sys_ioctl", "__do_compat_sys_foo", "__do_sys_getpid"] == [
        function.name for function in file.functions
    ]
    found = file.function_named("__x64_sys_ioctl")
    assert found is not None
    assert ("SYSCALL_DEFINE3(ioctl)", 2, 8) == (found.shown, found.start, found.end)
    assert "why" == file.comment_above("__se_sys_ioctl")
    condition = file.condition(5, 5)
    assert condition is not None
    assert ("!fd", "__do_sys_ioctl") == (condition.text, condition.function)


def test_both_branches_of_an_ifdef_are_read() -> None:
    """An "if" head in each branch is no C at once; the branch of the asked line counts."""
    text = (
        "int f(int a)\n{\n#ifdef CONFIG_X\n\tif (a > 1) {\n#else\n\tif (a > 2) {\n#endif\n"
        "\t\treturn 1;\n\t}\n\treturn 0;\n}\n\nint g(int b)\n{\n\tif (b)\n\t\treturn 2;\n"
        "\treturn 0;\n}\n"
    )
    file = SourceFile("x.c", text)
    found = [file.condition(line, 5) for line in (4, 6, 15)]
    assert ["a > 1", "a > 2", "b"] == [condition.text for condition in found if condition]
    assert ["f", "g"] == [function.name for function in file.functions]


def test_a_file_that_confuses_the_grammar_is_read_by_its_style() -> None:
    """An unknown macro at the top does not hide the functions behind it."""
    text = "static int q[] __odd((x)) = {\n\t1,\n};\nSTRANGE({[(\n\n" + TTY
    found = SourceFile("x.c", text).condition(18, 14)
    assert found is not None
    assert "is_current_pgrp_orphaned()" == found.text


def test_a_case_has_a_statement_of_its_own() -> None:
    """Also where several labels share it, and where the switch holds another."""
    code = body(
        "\tswitch (a) {\n\tcase 1:\n\tcase B:\n\t\tswitch (b) {\n\t\tcase 2:\n\t\t\tg();\n\t\t}\n"
        "\tcase 2:\n\t\th();\n\t\tk();\n\tdefault:\n\t\treturn -EINVAL;\n\t}"
    )
    file = SourceFile("x.c", code)
    switch = next(n for n, line in enumerate(code.splitlines(), 1) if "switch (a)" in line)
    found = {k: [each.text for each in own] for k, own in file.cases(switch).items()}
    assert found == {
        "1": ["switch b"], "B": ["switch b"], "2": ["h();", "k();"], "default": ["return -EINVAL;"],
    }  # fmt: skip


def test_a_goto_leads_to_its_return() -> None:
    """The statement that a branch leads to in the source."""
    code = body("\tif (a)\n\t\tgoto out;\n\tb = 1;\nout:\n\tg(b);\n\treturn -EINVAL;")
    found = SourceFile("x.c", code).return_statement(4)
    assert found is not None
    assert ("return -EINVAL;", 8) == (found.text, found.start)


@pytest.mark.parametrize("text", ["", "\0\0\0", "if (", "}" * 3000, "int f(\n{\n", "/*", "é" * 50])
def test_odd_source_never_raises(text: str) -> None:
    """Whatever the text is, the answer is None, [] or "" at worst."""
    file = SourceFile("x.c", text)
    for line, column in ((0, 0), (1, 1), (1, 5000), (99999, 3)):
        file.condition(line, column)
        file.guards(line, column)
        file.statement(line, column)
        file.return_statement(line)
    assert "" == file.comment_above("f")


@pytest.mark.parametrize("series", ["5.10", "6.1", "6.12", "7.2"])
def test_recorded_jumps_name_a_place_in_relative_files(series: str) -> None:
    """What the line tables of real kernels gave: relative names, lines and columns from 1."""
    rows = json.loads((DATA / f"{series}.json").read_text())["jumps"][0]
    assert rows
    for _offset, _function, file, line, column in rows:
        assert not file.startswith(("/", "."))
        assert line > 0
        assert column > 0
