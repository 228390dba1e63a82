"""Small C programs and kernel modules, compiled here to run in a guest; cached by their content."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from kwhy.errors import FeatureError, UsageError
from kwhy.lab import fetch
from kwhy.lab.kernels import KernelVersion
from kwhy.lab.paths import cache_dir, make_once, remove
from kwhy.lab.progress import Progress

#: Static: a guest's C library may be older than ours.
PROGRAM_FLAGS = ["-static", "-O1", "-pthread", "-Wall"]


def build_program(source: Path, flags: list[str] | None = None) -> Path:
    """Compile one C file; the executable carries the file's name without ``.c``.

    Raises UsageError with the compiler's first error, FeatureError where there is no compiler.
    """
    text = _read(source)
    command = ["cc", *PROGRAM_FLAGS, *(flags or [])]
    key = hashlib.sha256(repr((text, command)).encode()).hexdigest()[:16]

    def make(temporary: Path) -> None:
        temporary.mkdir(parents=True)
        _compile([*command, "-o", str(temporary / source.stem), str(source)], source)

    made = make_once(
        cache_dir() / "programs" / key, f"waiting for another kwhy that compiles {source}", make
    )
    return made / source.stem


def build_module(
    kernel: KernelVersion,
    source: Path,
    progress: Progress | None = None,
    definitions: Mapping[str, int] | None = None,
) -> Path:
    """Compile one C file as a module of ``kernel``; fetches its headers package first.

    ``definitions`` are macros that the source finds defined.

    Debian's modules of 5.10 were made by gcc 10; the compiler of this machine will do, with a
    warning in the kernel log. The source is kept beside the module, where its line table finds it.
    Raises UsageError with the compiler's first error, FeatureError.
    """
    text = _read(source)
    headers = fetch.get(kernel, ["headers"], progress).headers_dir
    assert headers is not None
    given = sorted((definitions or {}).items())
    key = hashlib.sha256(repr((text, kernel.version, given, "beside")).encode()).hexdigest()[:16]

    def make(temporary: Path) -> None:
        temporary.mkdir(parents=True)
        flags = [f"-D{name}={value}" for name, value in given]
        _build_module(kernel, headers, source, temporary, flags)

    made = make_once(
        cache_dir() / "modules" / key, f"waiting for another kwhy that compiles {source}", make
    )
    return made / f"{source.stem}.ko"


def _build_module(
    kernel: KernelVersion, headers: Path, source: Path, out: Path, flags: list[str]
) -> None:
    tree = headers / "usr" / "src" / f"linux-headers-{kernel.release}"
    work = out / "work"
    work.mkdir()
    shutil.copy(source, work / source.name)
    (work / "Makefile").write_text(f"obj-m := {source.stem}.o\n")
    command = [
        "make",
        "-s",
        "-C",
        str(tree),
        f"M={work}",
        "CC=gcc",
        # The symbol versions of Debian's build need vmlinux; without BTF the module loads as well.
        "CONFIG_DEBUG_INFO_BTF_MODULES=",
        f"KCFLAGS={' '.join([f'-ffile-prefix-map={work}=/.', *flags])}",
        *_without_unknown_flags(),
        "modules",
    ]
    _compile(command, source)
    (work / f"{source.stem}.ko").rename(out / f"{source.stem}.ko")
    (work / source.name).rename(out / source.name)
    remove(work)


def _without_unknown_flags() -> list[str]:
    """Settings of the kernel's configuration to leave out because our compiler is too old for them.

    Newer kernels were configured with a newer gcc, whose flags an older one refuses.
    """
    flags = {
        "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT": "-fmin-function-alignment=16",  # gcc 14
        "CONFIG_CC_HAS_COUNTED_BY": "-fstrict-flex-arrays=3",  # gcc 15
    }
    unknown = []
    for setting, flag in flags.items():
        command = ["gcc", flag, "-x", "c", "-fsyntax-only", os.devnull]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            unknown.append(f"{setting}=")
    return unknown


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from None


def _compile(command: list[str], source: Path) -> None:
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError:
        raise FeatureError(
            f"compiling {source.name} needs {command[0]}: apt-get install gcc make libc6-dev",
            "compiler",
        ) from None
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no reason given"]
        raise UsageError(f"{source.name} does not compile: {errors[0]}")
