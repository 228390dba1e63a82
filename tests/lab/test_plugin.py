"""kwhy's commands in the drgn shell: on a dump with drgn's own debug symbols, and on a live kernel
inside of a guest, where there are none."""

import contextlib
import io
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import drgn
import pytest
from drgn.commands import CommandError, run_command
from drgn.helpers.linux.pid import find_task
from tests.lab.conftest import Dumps
from tests.lab.desk import own_guest, run_in

import kwhy
from kwhy import lab
from kwhy.kernel.debuginfo import lab_files

pytestmark = pytest.mark.lab

Shell = Callable[[str], tuple[Any, str]]


@pytest.fixture(scope="module")
def program(dumps: Dumps) -> drgn.Program:
    """drgn's own program on a dump, debug symbols of the kernel in it."""
    import kwhy.plugin  # noqa: F401  # as drgn does, through its entry point

    found = drgn.Program()
    found.set_core_dump(dumps("6.12"))
    info = found["VMCOREINFO"].string_().decode()
    release = next(line for line in info.splitlines() if line.startswith("OSRELEASE="))
    directory = lab_files(release.partition("=")[2]).debug_dir
    with contextlib.suppress(drgn.MissingDebugInfoError):  # of the modules
        found.load_debug_info([next(directory.rglob("vmlinux"))], main=True)
    return found


@pytest.fixture(scope="module")
def shell(program: drgn.Program) -> Shell:
    """Runs one line of the shell: its result and what it printed."""
    variables = {"t": find_task(program, 1), "n": 961}

    def run(line: str) -> tuple[Any, str]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            result = run_command(program, line, globals=variables)
        return result, out.getvalue()

    return run


def test_call_gives_an_object_of_the_shells_program(shell: Shell, program: drgn.Program) -> None:
    """Variables of the shell are arguments, and what comes back goes on in the shell."""
    area, text = shell("call find_vma(t->mm, t->mm->arg_start)")
    start = find_task(program, 1).mm.arg_start
    assert area.prog_ is program
    assert area.vm_start <= start < area.vm_end
    assert "find_vma(t->mm, t->mm->arg_start) = 0x" in text
    assert shell("call int_sqrt(n)")[0].value_() == 31


def test_why_tells_what_decided(shell: Shell) -> None:
    """``%why`` is ``%call --why``, also of a system call."""
    _, text = shell("why --task 1 --syscall kill(1, 1000)")
    assert "-22 -EINVAL" in text
    assert "valid_signal(sig)" in text
    assert text == shell("call --why --syscall --task 1 kill(1, 1000)")[1]


def test_dis_shows_source_and_live_text(shell: Shell) -> None:
    """Source lines stand above their instructions; calls and variables have names."""
    _, text = shell("dis kstrtoint")
    assert "rv = kstrtoll(s, base, &tmp);" in text
    assert "call kstrtoll" in text
    _, some = shell("dis --around 2 t->files->fdt->fd[0]->f_op->read_iter")
    assert some.startswith(("tty_read", "hung_up_tty_read"))
    assert len(some.splitlines()) < 12
    _, near = shell("dis schedule+0x20")
    assert any(line.startswith("  => +0x") for line in near.splitlines())


def test_args_shows_what_each_call_was_given(shell: Shell) -> None:
    """The frames of a sleeping task, innermost first, with arguments and where they were found."""
    _, text = shell("args 2")
    assert text.startswith("2 kthreadd (S)")
    assert "__schedule()+0x" in text
    assert "kernel/kthread.c" in text
    assert "sched_mode = " in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("call nosuch(1)", "no function nosuch"),
        ("call find_vma(t->mm)", "takes 2 arguments"),
        ("call strlen(nothing)", "nothing in this kernel is called 'nothing'"),
        ("call", "required: FUNC"),
        ("call --cpu", "expected one argument"),
        ("why --task 99999 int_sqrt(4)", "no task 99999"),
        ("dis t->mm", "only code can be disassembled"),
        ("dis &jiffies", "is data: only code"),
        ("dis", "required: place"),
        ("args 99999", "no process or thread has the number 99999"),
        ("args x", "invalid int value"),
    ],
)
def test_mistakes_are_told_in_the_shells_manner(shell: Shell, line: str, said: str) -> None:
    """What is wrong is a CommandError of one line, with a caret where there is a place."""
    with pytest.raises(CommandError, match=None) as caught:
        shell(line)
    assert said in str(caught.value)


PARTS = ("drgn", "capstone", "unicorn", "numpy", "zstandard", "tree-sitter", "tree-sitter-c",
         "networkx", "rich", "pygments", "markdown-it-py", "mdurl")  # fmt: skip
SCRIPT = """
from drgn.commands import run_command
run = lambda line: run_command(prog, line, globals=globals())
print("sqrt", run("call int_sqrt(961)").value_())
print("task", run("call find_task_by_vpid(1)").value_())
run('why strcmp("ab", "ac")')
run("dis --around 2 kstrtoint+0x20")
run("args %d")
"""


@pytest.mark.slow
def test_a_live_kernel(tmp_path: Path) -> None:
    """The same commands in a drgn that runs on the kernel it looks at, without debug symbols."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the guests' Python is 3.11: this one's extension modules do not fit")
    site = _site(tmp_path / "site")
    script = tmp_path / "script.py"
    places = "LD_LIBRARY_PATH=/opt/site/lib PYTHONPATH=/opt/site DRGN_PLUGINS=kwhy=kwhy.plugin"
    with (
        own_guest("6.12", "drgn", memory=2560, files={"/opt/site": site}) as guest,
        lab.open_link(guest) as link,
    ):
        _, out, _ = run_in(link, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
        script.write_text(SCRIPT % int(out))
        link.put(script, "/script.py")
        command = f"{places} python3 -m drgn -q -k /script.py"
        status, out, err = run_in(link, "sh", "-c", command, timeout=300)
    assert (status, err) == (0, "")
    assert "sqrt 31\n" in out
    assert "call kstrtoll" in out
    assert "strcmp+0x" in out
    assert "hrtimer_nanosleep()+0x" in out
    assert "? " not in out


def _site(site: Path) -> Path:
    """kwhy and what it needs, without what only a compiler wants."""
    unwanted = shutil.ignore_patterns("*.a", "__pycache__", "tests", "include")
    for part in PARTS:
        for file in distribution(part).files or ():
            if file.parts[0] != ".." and "__pycache__" not in file.parts and file.suffix != ".a":
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), site / file)
    shutil.copytree(Path(kwhy.__file__).parent, site / "kwhy", ignore=unwanted)
    (site / "lib").mkdir()
    for name in ("libstdc++.so.6", "libgcc_s.so.1"):
        shutil.copy(Path("/usr/lib/x86_64-linux-gnu") / name, site / "lib")
    return site
