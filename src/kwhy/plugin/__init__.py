"""kwhy in the drgn shell: ``%call``, ``%why``, ``%dis`` and ``%args``.

drgn loads this package through the entry point "drgn.plugins" into every program that uses drgn,
kwhy's own included: it only says which commands there are; the rest is imported when one is used.
"""

from typing import Any

from drgn.commands import argument, command, raw_command

_OPTIONS = (
    argument("--syscall", action="store_true", help="a dry run of a system call, as --task"),
    argument("--trace", action="store_true", help="list what was executed"),
    argument("--cpu", metavar="N", type=int, default=0, help="as if on this CPU (0)"),
    argument("--task", metavar="PID", type=int, help="as if this task ran it"),
    argument("call", metavar="FUNC(ARG, ...)", help="C-like; variables of the shell are known"),
)


def _kernel(prog: Any) -> bool:
    from drgn import ProgramFlags

    return bool(prog.flags & ProgramFlags.IS_LINUX_KERNEL)


@raw_command(
    name="call",
    description="run a kernel function offline, on a copy of memory",
    arguments=(argument("--why", action="store_true", help="tell what decided"), *_OPTIONS),
    usage="**call** [*options*] *FUNC(ARG, ...)*",
    long_description="The result becomes ``_``. Nothing is written to the target.",
    enabled=_kernel,
)
def call(prog: Any, name: str, args: str, **context: Any) -> Any:
    """``%call FUNC(ARG, ...)``; gives the result as an object of ``prog`` where it can be one."""
    from kwhy.plugin import commands

    return commands.call(prog, args, context["globals"], context["parser"])


@raw_command(
    name="why",
    description="run a kernel function offline and tell which branches and values decided",
    arguments=_OPTIONS,
    usage="**why** [*options*] *FUNC(ARG, ...)*",
    long_description="The same as ``call --why``.",
    enabled=_kernel,
)
def why(prog: Any, name: str, args: str, **context: Any) -> Any:
    """``%why FUNC(ARG, ...)``."""
    from kwhy.plugin import commands

    return commands.call(prog, args, context["globals"], context["parser"], why=True)


@raw_command(
    name="dis",
    description="disassemble a kernel function with its source lines",
    arguments=(
        argument("--around", metavar="N", type=int, help="only N instructions on either side"),
        argument("place", help="a function, FUNCTION+0x1b, or an expression for an address"),
    ),
    usage="**dis** [**--around** *N*] *FUNCTION* | *FUNCTION+OFFSET* | *EXPR*",
    long_description="Live text: with what tracing, static keys and alternatives made of it.",
    enabled=_kernel,
)
def dis(prog: Any, name: str, args: str, **context: Any) -> None:
    """``%dis PLACE``."""
    from kwhy.plugin import commands

    commands.dis(prog, args, context["globals"], context["parser"])


@command(
    name="args",
    description="print the stack of a sleeping task with the arguments of each call",
    arguments=(argument("pid", type=int, help="a process or thread number"),),
    enabled=_kernel,
)
def args(prog: Any, name: str, args: Any, **context: Any) -> None:
    """``%args PID``."""
    from kwhy.plugin import commands

    commands.args(prog, args.pid)
