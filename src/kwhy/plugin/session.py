"""From a drgn program and its shell to what kwhy works on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kwhy.case.program import ProgramEvidence
from kwhy.kernel.debuginfo import Where
from kwhy.kernel.model import Kernel, open_kernel

_KEPT = "kwhy"


def kernel_of(program: Any) -> Kernel:
    """The kernel behind a drgn program. A dump's is opened once; one that runs is read anew.

    Debug symbols are those that the program has loaded, else those that kwhy finds itself.
    """
    kept: Kernel | None = program.cache.get(_KEPT)
    fresh = again(kept) if kept is not None else None
    if kept is not None and fresh is None:
        return kept
    evidence = fresh or ProgramEvidence(program, "the memory of this shell's program")
    kernel = program.cache[_KEPT] = open_kernel(evidence, _debug_file(program))
    return kernel


def again(kernel: Kernel) -> ProgramEvidence | None:
    """A second look at what ``kernel_of`` opened; None where time stands still."""
    evidence = kernel.evidence
    return evidence.again() if isinstance(evidence, ProgramEvidence) else None


def _debug_file(program: Any) -> Where:
    try:
        path = program.main_module().debug_file_path
    except LookupError:
        return "auto"
    return Path(path) if path else "auto"


def shell_variables(variables: Mapping[str, Any]) -> Callable[[Any, str], Any]:
    """What ``given`` of kwhy.emulate.Caller asks: the shell's numbers and drgn objects."""

    def given(program: Any, name: str) -> Any:
        import drgn

        value = variables.get(name)
        if isinstance(value, drgn.Object):
            return moved(program, value)
        if isinstance(value, int) and not isinstance(value, bool):
            kind = "long" if -(1 << 63) <= value < 1 << 63 else "unsigned long"
            return drgn.Object(program, program.type(kind), value)
        return None

    return given


def moved(program: Any, value: Any) -> Any:
    """An object of one program as an object of another program of the same kernel.

    Raises LookupError when that one does not know its type, ValueError when it has no value.
    """
    import drgn

    if value.absent_:
        raise ValueError("the object is absent")
    kind = program.type(value.type_.type_name())
    if value.address_ is not None and value.bit_offset_ == 0 and not value.bit_field_size_:
        return drgn.Object(program, kind, address=value.address_)
    return drgn.Object(program, kind, value.value_())
