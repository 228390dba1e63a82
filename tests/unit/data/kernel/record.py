"""Record the small facts of real kernels that the unit tests use; needs the lab's cache.

    python tests/unit/data/kernel/record.py

For each kernel with debug symbols in the cache: the first entries of its exception table, and the
source positions of the conditional jumps of a few functions, with the lines they stand on.
"""

import json
from pathlib import Path

from capstone import CS_ARCH_X86, CS_MODE_64, Cs

from kwhy.kernel.elf import ElfFile
from kwhy.kernel.image import ImageEvidence
from kwhy.kernel.model import open_kernel
from kwhy.lab import fetch, kernels

HERE = Path(__file__).parent
ENTRIES = 60


def record(vmlinux: Path) -> dict[str, object]:
    """The facts of one kernel image."""
    kernel = open_kernel(ImageEvidence(vmlinux), vmlinux, "none")
    place = ElfFile(vmlinux).section_range("__ex_table")
    data = ElfFile(vmlinux).section("__ex_table")
    assert place and data
    table = data[: 12 * ENTRIES]
    handlers = {}
    for index in range(ENTRIES):
        at = 12 * index + 8
        handler = place[0] + at + int.from_bytes(table[at : at + 4], "little", signed=True)
        if (symbol := kernel.symbols.at(handler)) and symbol.name.startswith("ex_handler_"):
            handlers[f"{handler:#x}"] = symbol.name
    return {
        "release": kernel.release,
        "extable": {"address": f"{place[0]:#x}", "table": table.hex(), "handlers": handlers},
        "jumps": [jumps(kernel, name) for name in ("__tty_check_change", "sys_ioctl")],
    }


def jumps(kernel: object, name: str) -> list[list[object]]:
    """[offset, function, file, line, column] of the conditional jumps of a function."""
    from kwhy.kernel.model import Kernel

    assert isinstance(kernel, Kernel)
    found = kernel.symbols.variant(name)
    engine = Cs(CS_ARCH_X86, CS_MODE_64)
    rows: list[list[object]] = []
    for symbol in found:
        code = kernel.code(symbol.address, symbol.size)
        for address, _size, mnemonic, _operands in engine.disasm_lite(code, symbol.address):
            if mnemonic.startswith("j") and mnemonic != "jmp":
                frame = kernel.frames(address)[0]
                place = [frame.function, frame.file, frame.line, frame.column]
                rows.append([address - symbol.address, *place])
    return rows


def main() -> None:
    """One JSON file per series."""
    for kernel in kernels.cached_kernels():
        path = fetch.files(kernel).vmlinux_debug
        if path is not None:
            text = json.dumps(record(path), indent=1)
            (HERE / f"{kernel.series}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
