"""A drgn program over any evidence: live agent, dump or saved case; helpers and all.

Every byte that drgn reads goes through the evidence, so that a saved case holds what was used.
"""

import json
from typing import TYPE_CHECKING, Any

from kwhy.case.evidence import MissingMemory
from kwhy.errors import FeatureError, InputError
from kwhy.kernel.btfprogram import BtfSource
from kwhy.kernel.identity import vmcoreinfo_text

if TYPE_CHECKING:
    from kwhy.kernel.model import Kernel


def open_program(kernel: "Kernel") -> Any:
    """The ``drgn.Program`` of ``kernel``, debug info of vmlinux and the loaded modules in it.

    drgn's helpers, per-CPU objects and ``stack_trace(task)`` work on it; a task that was running
    has no registers to begin from.  Without debug info types and functions come from BTF.
    Raises FeatureError when the target does not tell its VMCOREINFO.
    """
    import drgn

    info = vmcoreinfo_text(kernel.evidence.blob("vmcoreinfo"))
    if info is None:
        raise FeatureError(
            "the target's VMCOREINFO cannot be read: /proc/kcore has no such note", "vmcoreinfo"
        )
    flags = drgn.PlatformFlags.IS_64_BIT | drgn.PlatformFlags.IS_LITTLE_ENDIAN
    platform = drgn.Platform(drgn.Architecture.X86_64, flags)
    try:
        program = drgn.Program(platform, vmcoreinfo=info.rstrip(b"\0"))
        program.set_linux_kernel_custom(info, False)
    except (ValueError, drgn.BadDataError) as error:
        raise InputError(f"the kernel's VMCOREINFO is damaged: {error}") from error
    _add_memory(program, kernel)
    # Only files whose build-id was compared, from the places that the user allowed.
    program.set_enabled_debug_info_finders([])
    if kernel.vmlinux is not None:
        program.load_debug_info([str(kernel.vmlinux)])
        _add_modules(program, kernel)
    elif (btf := kernel.btf) is not None:
        BtfSource(program, btf, kernel.symbols).register()
    return program


def _add_memory(program: Any, kernel: "Kernel") -> None:
    """Virtual addresses as the evidence has them; physical ones through the kernel's direct map."""
    from drgn import FaultError

    evidence = kernel.evidence
    base = kernel.symbols.address("page_offset_base")

    def virtual(address: int, count: int, _offset: int, _physical: bool) -> bytes:
        try:
            return evidence.read(address, count)
        except MissingMemory as error:
            raise FaultError(str(error), address) from error

    def physical(address: int, count: int, _offset: int, _physical: bool) -> bytes:
        if base is None:
            raise FaultError("the place of the direct map is not known", address)
        start = int.from_bytes(virtual(base, 8, 0, False), "little")
        return virtual(start + address, count, 0, False)

    program.add_memory_segment(0, (1 << 64) - 1, virtual)
    program.add_memory_segment(0, 1 << 52, physical, True)


def _add_modules(program: Any, kernel: "Kernel") -> None:
    import drgn

    try:
        found = [module for module, _new in program.loaded_modules()]
    except (drgn.FaultError, LookupError) as error:
        kernel.notes.append(f"the loaded modules cannot be listed from memory: {error}")
        return
    for module in found:
        if not isinstance(module, drgn.RelocatableModule):
            continue
        path = kernel.module_file(module.name, _build_id(module))
        if path is not None:
            module.try_file(path)


def module_facts(kernel: "Kernel") -> bytes | None:
    """Build-ids and section addresses of the loaded modules, shaped as the agent's "modules" blob.

    From ``struct module`` in memory; None without debug info.
    """
    import drgn

    if kernel.vmlinux is None:
        return None
    rows = [
        {
            "name": module.name,
            "build_id": _build_id(module) or "",
            "sections": dict(module.section_addresses),
        }
        for module in open_program(kernel).modules()
        if isinstance(module, drgn.RelocatableModule)
    ]
    return json.dumps(rows).encode()


def _build_id(module: Any) -> str | None:
    return module.build_id.hex() if module.build_id else None
