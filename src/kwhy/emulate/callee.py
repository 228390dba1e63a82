"""Which function a call means, and how it takes its arguments."""

import re
from functools import cached_property
from typing import Any

from kwhy.case.evidence import MissingMemory
from kwhy.emulate.names import Call, ExpressionError
from kwhy.errors import UsageError
from kwhy.kernel import prototypes
from kwhy.kernel.btfprogram import BtfSource
from kwhy.kernel.model import Kernel
from kwhy.kernel.symbols import Symbol

_SCHEDULING = 1
"""The last system_state in which init code is surely there (enum system_states)."""
_TOLD = 6
"""Functions of one name that an error lists."""
_UNUSED = re.compile(r"__unused|__ur_\d+$")
"""Parameters that only fill up: SYSCALL_DEFINE0's, BPF_CALL_n's (include/linux/filter.h)."""


class Callees:
    """Functions of a kernel by name, with their types in ``program``."""

    def __init__(self, kernel: Kernel, program: Any) -> None:
        self.kernel = kernel
        self.program = program

    def function(self, call: Call) -> Symbol:
        """The function that is meant. Raises ExpressionError when that is none, or not clear."""
        if call.target is not None:
            return self._still_there(call, self._at(call, _pointed_at(call.target)))
        found = self.kernel.symbols.named(call.name)
        code = list({s.address: s for s in found if s.code}.values())
        if not code:
            raise ExpressionError(call.text, call.at, self._absent(call.name, bool(found)))
        if call.where is not None:
            code = [s for s in code if self._is_from(s, call.where)]
            if not code:
                why = f"no {call.name}() is from {call.where}"
                raise ExpressionError(call.text, call.at, why)
        if len(code) > 1 and not self._one_header(code):
            raise ExpressionError(call.text, call.at, self._several(call.name, code))
        return self._still_there(call, code[0])

    def _at(self, call: Call, address: int) -> Symbol:
        symbol = self.kernel.symbols.at(address)
        if symbol is None or symbol.address != address or not symbol.code:
            why = f"no function begins at {address:#x}" if address else "the pointer is NULL"
            raise ExpressionError(call.text, call.at, why)
        return symbol

    def _still_there(self, call: Call, symbol: Symbol) -> Symbol:
        if self._is_gone(symbol.address):
            why = f"{symbol.name}() is __init: its code was given back when the kernel had booted"
            raise ExpressionError(call.text, call.at, why)
        return symbol

    def _absent(self, name: str, data: bool) -> str:
        symbols = self.kernel.symbols
        if data:
            return f"{name} is data, not a function"
        if variants := [s.name for s in symbols.variant(name)]:
            return (
                f"the compiler changed {name} to {', '.join(variants[:4])}: its arguments "
                "are not the source's; call a function around it"
            )
        why = f"the kernel has no function {name}; it may be inlined everywhere, or a macro"
        alike = [f"{head}{name}" for head in ("_", "__", "sized_", "raw_", "ksys_", "vfs_", "do_")]
        near = [other for other in (*alike, f"{name}_noprof", name.lstrip("_"))
                if other != name and any(s.code for s in symbols.named(other))]  # fmt: skip
        return f"{why}. There is {' and '.join(f'{n}()' for n in near[:3])}" if near else why

    def _several(self, name: str, code: list[Symbol]) -> str:
        ways = ", ".join(f"{name}@{self._origin(symbol)}" for symbol in code[:_TOLD])
        more = ", ..." if len(code) > _TOLD else ""
        return f"{len(code)} functions are called {name}; say which: {ways}{more}"

    def _origin(self, symbol: Symbol) -> str:
        return symbol.module or self._file(symbol) or f"{symbol.address:#x}"

    def _is_from(self, symbol: Symbol, where: str) -> bool:
        """Whether a function is of a source file (or the end of its path), module, or address."""
        if re.fullmatch(r"0[xX][0-9a-fA-F]+", where):
            return symbol.address == int(where, 16)
        file = self._file(symbol)
        if file and (file == where or file.endswith(f"/{where}")):
            return True
        return where == (symbol.module or "vmlinux")

    def _file(self, symbol: Symbol) -> str | None:
        frames = self.kernel.frames(symbol.address)
        return frames[-1].file or None if frames else None

    def _one_header(self, code: list[Symbol]) -> bool:
        """Whether these are copies of one inline function."""
        files = {self._file(symbol) for symbol in code}
        return len(files) == 1 and str(files.pop()).endswith(".h")

    def _is_gone(self, address: int) -> bool:
        symbols = self.kernel.symbols
        start, end = (symbols.address(name) for name in ("_sinittext", "_einittext"))
        if start is None or end is None or not start <= address < end:
            return False
        state = symbols.address("system_state")
        try:
            data = self.kernel.evidence.read(state, 4) if state is not None else b""
        except MissingMemory:
            return True
        return not data or int.from_bytes(data, "little") > _SCHEDULING

    # -- types -------------------------------------------------------------------------------------

    def prototype(self, function: Symbol) -> Any:
        """A function's drgn type: by BTF, else by DWARF; None when neither knows it.

        BTF goes by names: it is asked where DWARF, which goes by places, knows of no other function
        there. Raises UsageError when only DWARF knows it and the source that tells the order of its
        parameters is not at hand (see :meth:`BtfSource.prototype`).
        """
        import drgn

        file = self._file(function)
        if file and file.endswith(".S"):  # assembly: its parameters are told nowhere
            return None
        known = prototypes.prototype(self.kernel, function, sure=True)
        named = self._btf.prototype(function.name) if self._btf else None
        if named is not None and not (function.module and self.kernel.symbols.named(
            function.name, modules=False
        )):
            if known is None:
                return None
            if {p.name for p in named.parameters} == {name for name, _ in known.params}:
                return named
        for where in (file, None) if file else (None,):
            try:
                found = self.program.function(function.name, where).type_
            except (LookupError, drgn.BadDataError):
                continue
            if known is None or {p.name for p in found.parameters} == {n for n, _ in known.params}:
                return found if len(found.parameters) < 2 else self._ordered(function, found)
        return None

    def _ordered(self, function: Symbol, kind: Any) -> Any:
        file = self._file(function)
        text = self.kernel.source(file) if file else None
        order = parameter_names(text or "", function.name)
        named = {parameter.name: parameter for parameter in kind.parameters}
        if order is None or set(order) != set(named):
            raise UsageError(
                f"in which order {function.name}() takes its parameters is not known: BTF leaves "
                "the function out, DWARF may have another order; the kernel's source would tell"
            )
        parameters = [named[name] for name in order]
        return self.program.function_type(kind.type, parameters, kind.is_variadic)

    @cached_property
    def _btf(self) -> BtfSource | None:
        btf = self.kernel.btf
        return BtfSource(self.program, btf, self.kernel.symbols) if btf else None


def check_count(call: Call, kind: Any) -> None:
    """Raises ExpressionError when there are more or fewer arguments than the type wants."""
    given, wanted = len(call.arguments), len(kind.parameters)
    least = wanted
    while least and _UNUSED.match(kind.parameters[least - 1].name or ""):
        least -= 1
    if given < least or (given > wanted and not kind.is_variadic):
        names = ", ".join(_declared(p) for p in kind.parameters)
        more = "at least " if kind.is_variadic else ""
        arguments = "argument" if wanted == 1 else "arguments"
        raise ExpressionError(
            call.text,
            call.at,
            f"{call.name or 'it'}() takes {more}{wanted} {arguments} ({names or 'void'}), "
            f"{given} were given",
        )


def parameter_names(text: str, function: str) -> list[str] | None:
    """The parameters' names as a function's definition in C source text has them, in order."""
    head = rf"^(?:[A-Za-z_][^\n;{{}}()]*[\s*])?{re.escape(function)}\s*"
    found = re.search(head + r"\(([^{};]*)\)\s*\{", text, re.MULTILINE)
    if found is None:
        return None
    out = []
    for part in found[1].split(","):
        name = re.search(r"([A-Za-z_]\w*)\s*(?:\[[^\]]*\]\s*)*$", part)
        if name is None:
            return None
        out.append(name[1])
    return out


def _declared(parameter: Any) -> str:
    name: str = parameter.type.type_name()
    if not parameter.name:
        return name
    return f"{name}{'' if name.endswith('*') else ' '}{parameter.name}"


def _pointed_at(target: Any) -> int:
    import drgn

    if target.type_.kind == drgn.TypeKind.FUNCTION:
        return int(target.address_ or 0)
    return int(target.value_())
