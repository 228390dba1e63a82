"""What a process had in its memory when its system calls failed: a few pages around each argument.

A BPF program on the raw tracepoint sys_exit copies, for each failing call of one process, the page
that each argument points into, if it does, and the top of the stack. It is loaded by bpf(2) alone
and ends with its descriptors, however the agent dies. Where the kernel does not allow it, there are
no such pages, and nothing else is lost.
"""

import collections
import ctypes
import mmap
import os
import resource
import struct
from typing import Any, Deque, Dict, List, Optional, Tuple

PAGE = 4096
RING = 8 << 20
KEPT = 64
"""Failing calls whose pages are kept: the last ones."""

# By machine: the number of bpf(2), size of struct pt_regs, offsets of the arguments and the stack
# pointer in it (arch/x86/include/asm/ptrace.h).
ABI = {"x86_64": (321, 168, (112, 104, 96, 56, 72, 64), 152)}
STACK_PAGES = 3

# include/uapi/linux/bpf.h
MAP_CREATE, PROG_LOAD, RAW_TRACEPOINT_OPEN = 0, 5, 17
MAP_RINGBUF, PROG_RAW_TRACEPOINT = 27, 17
CURRENT_PID_TGID, KTIME, READ_USER, READ_KERNEL, RESERVE, SUBMIT = 14, 5, 112, 113, 131, 132
BUSY, DISCARDED = 1 << 31, 1 << 30

HEAD = struct.Struct("<QqQ")  # tgid and tid, result, time in ns of CLOCK_MONOTONIC

Snapshot = Tuple[int, int, List[List[int]]]  # time, tid, [[address, number of the page]]


class UserPages(object):
    """The program at work, and the pages that it gave."""

    def __init__(self, pid: int) -> None:
        """Raises OSError where it is not to be had."""
        self._call, self._registers, self._arguments, self._stack = ABI[os.uname().machine]
        self._count = len(self._arguments) + STACK_PAGES
        self._fds: List[int] = []
        self._maps: List[mmap.mmap] = []
        self._kept: Deque[bytes] = collections.deque(maxlen=KEPT)
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        try:
            # Before 5.11 the ring counts as locked memory.
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
            self._load(pid)
        except BaseException:
            self.close()
            raise
        finally:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limit)

    def _load(self, pid: int) -> None:
        ring = self._bpf(MAP_CREATE, struct.pack("<IIII", MAP_RINGBUF, 0, 0, RING))
        self._fds.append(ring)
        self._maps.append(mmap.mmap(ring, PAGE, mmap.MAP_SHARED))
        self._maps.append(
            mmap.mmap(ring, PAGE + 2 * RING, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        )
        code = self._program(pid, ring)
        text, word = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
        attributes = struct.pack(
            "<IIQQIIQII", PROG_RAW_TRACEPOINT, len(code) // 8, ctypes.addressof(text),
            ctypes.addressof(word), 0, 0, 0, 0, 0,
        )  # fmt: skip
        program = self._bpf(PROG_LOAD, attributes)
        self._fds.append(program)
        name = ctypes.create_string_buffer(b"sys_exit")
        opened = struct.pack("<QII", ctypes.addressof(name), program, 0)
        self._fds.append(self._bpf(RAW_TRACEPOINT_OPEN, opened))

    def _bpf(self, command: int, attributes: bytes) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        room = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
        found = libc.syscall(self._call, command, room, 128)
        if found < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(found)

    # -- the program ----------------------------------------------------------------------------

    def _program(self, pid: int, ring: int) -> bytes:
        """Registers: 6 the context, 7 the result, 8 the task, 9 the record."""
        saved = HEAD.size
        sources = [(saved + offset, 0) for offset in self._arguments]
        sources += [(saved + self._stack, PAGE * n) for n in range(STACK_PAGES)]
        first = saved + self._registers + 8 * len(sources)
        code = [
            _insn(0xBF, 6, 1),
            _insn(0x79, 7, 6, 8),  # the result
            (0x65, 7, -1),  # not an error: out
            (0xC5, 7, -4095),
            _insn(0x85, imm=CURRENT_PID_TGID),
            _insn(0xBF, 8, 0),
            _insn(0x77, 0, imm=32),
            (0x55, 0, pid),  # another process: out
            _insn(0x18, 1, 1, imm=ring) + _insn(0),
            _insn(0xB7, 2, imm=first + PAGE * len(sources)),
            _insn(0xB7, 3),
            _insn(0x85, imm=RESERVE),
            (0x15, 0, 0),  # the ring is full: out
            _insn(0xBF, 9, 0),
            _insn(0x7B, 9, 8, 0),
            _insn(0x7B, 9, 7, 8),
            _insn(0x85, imm=KTIME),
            _insn(0x7B, 9, 0, 16),
            _insn(0xBF, 1, 9),
            _insn(0x07, 1, imm=saved),
            _insn(0xB7, 2, imm=self._registers),
            _insn(0x79, 3, 6, 0),
            _insn(0x85, imm=READ_KERNEL),
        ]
        for number, (place, beyond) in enumerate(sources):
            code += [
                _insn(0x79, 3, 9, place),
                _insn(0x57, 3, imm=-PAGE),
                _insn(0x07, 3, imm=beyond),
                _insn(0xBF, 1, 9),
                _insn(0x07, 1, imm=first + PAGE * number),
                _insn(0xB7, 2, imm=PAGE),
                _insn(0x85, imm=READ_USER),
                _insn(0x7B, 9, 0, saved + self._registers + 8 * number),
            ]
        code += [
            _insn(0xBF, 1, 9),
            _insn(0xB7, 2),
            _insn(0x85, imm=SUBMIT),
            _insn(0xB7, 0),
            _insn(0x95),
        ]
        return _linked(code)

    # -- what it gave ---------------------------------------------------------------------------

    def sweep(self) -> None:
        """Take what has come since."""
        if len(self._maps) < 2:
            return
        done, data = self._maps
        (at,) = struct.unpack_from("<Q", done)
        (end,) = struct.unpack_from("<Q", data)
        while at < end:
            start = PAGE + at % RING
            (size,) = struct.unpack_from("<I", data, start)
            if size & BUSY:
                break
            length = size & ~DISCARDED
            if not size & DISCARDED:
                self._kept.append(data[start + 8 : start + 8 + length])
            at += (length + 8 + 7) & ~7
            struct.pack_into("<Q", done, 0, at)

    def collected(self) -> Tuple[List[Snapshot], bytes]:
        """The snapshots, oldest first, and the pages that they number, each kept once."""
        self.sweep()
        pages: Dict[bytes, int] = {}
        snapshots: List[Snapshot] = []
        for record in self._kept:
            task, _, time = HEAD.unpack_from(record)
            bases = self._bases(record)
            states = struct.unpack_from("<%dq" % self._count, record, HEAD.size + self._registers)
            body = HEAD.size + self._registers + 8 * self._count
            found = []
            for number in range(self._count):
                page = record[body + PAGE * number : body + PAGE * (number + 1)]
                if states[number] == 0:
                    found.append([bases[number], pages.setdefault(page, len(pages))])
            snapshots.append((time, task & 0xFFFFFFFF, found))
        return snapshots, b"".join(pages)

    def _bases(self, record: bytes) -> List[int]:
        def word(offset: int) -> int:
            found: int = struct.unpack_from("<Q", record, HEAD.size + offset)[0]
            return found & -PAGE

        arguments = [word(offset) for offset in self._arguments]
        return arguments + [word(self._stack) + PAGE * n for n in range(STACK_PAGES)]

    def close(self) -> None:
        """End the program."""
        for each in self._maps:
            each.close()
        for fd in reversed(self._fds):
            os.close(fd)
        self._maps, self._fds = [], []


def _insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    """struct bpf_insn."""
    return struct.pack("<BBhi", code, src << 4 | dst, off, imm)


def _linked(code: "List[Any]") -> bytes:
    """The program's bytes; a tuple (opcode, register, immediate) is a jump to its last two."""
    total = sum(1 if isinstance(part, tuple) else len(part) // 8 for part in code)
    out = b""
    for part in code:
        if isinstance(part, tuple):
            opcode, register, value = part
            part = _insn(opcode, register, 0, total - 2 - len(out) // 8 - 1, value)
        out += part
    return out


def watch(pid: int) -> Optional[UserPages]:
    """Snapshots of a process's failing calls from now on; None where there can be none."""
    try:
        return UserPages(pid)
    except (OSError, KeyError, ValueError):
        return None
