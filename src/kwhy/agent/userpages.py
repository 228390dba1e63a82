"""What processes had in their memory when system calls failed: a few pages around each argument.

A BPF program on the raw tracepoint sys_exit copies, for each failing call of some processes, the
page that each argument points into, if it does, and the top of the stack. It is loaded by bpf(2)
alone and ends with its descriptors, however the agent dies. Where the kernel does not allow it,
there are no such pages, and nothing else is lost.
"""

import collections
import ctypes
import mmap
import os
import resource
import struct
from typing import Any, Deque, Dict, Iterator, List, Optional, Tuple

PAGE = 4096
RING = 8 << 20
KEPT = 64
"""Failing calls of a process whose pages are kept: the last ones,"""
KEPT_ALL = 1024
"""and of all processes together."""
PROCESSES = 16384

# By machine: the number of bpf(2), size of struct pt_regs, offsets of the arguments, the stack
# pointer and the system call's number in it (arch/x86/include/asm/ptrace.h).
ABI = {"x86_64": (321, 168, (112, 104, 96, 56, 72, 64), 152, 120)}
STACK_PAGES = 3

# include/uapi/linux/bpf.h
MAP_CREATE, MAP_UPDATE, MAP_DELETE, PROG_LOAD, RAW_TRACEPOINT_OPEN = 0, 2, 3, 5, 17
MAP_HASH, MAP_RINGBUF, PROG_RAW_TRACEPOINT = 1, 27, 17
MAP_LOOKUP, KTIME, CURRENT_PID_TGID = 1, 5, 14
READ_USER, READ_KERNEL, RESERVE, SUBMIT = 112, 113, 131, 132
BUSY, DISCARDED = 1 << 31, 1 << 30

HEAD = struct.Struct("<QqQ")  # tgid and tid, result, time in ns of CLOCK_MONOTONIC

Snapshot = Tuple[int, int, List[List[int]]]  # time, tid, [[address, number of the page]]


class UserPages(object):
    """The program at work, and the pages that it gave."""

    def __init__(self) -> None:
        """Raises OSError where it is not to be had."""
        machine = ABI[os.uname().machine]
        self._call, self._registers, self._arguments, self._stack, self._number = machine
        self._count = len(self._arguments) + STACK_PAGES
        self._fds: List[int] = []
        self._maps: List[mmap.mmap] = []
        self._processes = -1
        self._kept: Dict[int, Deque[bytes]] = {}
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        try:
            # Before 5.11 the ring counts as locked memory.
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
            self._load()
        except BaseException:
            self.close()
            raise
        finally:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limit)

    def _load(self) -> None:
        room = struct.pack("<IIII", MAP_HASH, 4, 4, PROCESSES)
        self._processes = self._bpf(MAP_CREATE, room)
        self._fds.append(self._processes)
        ring = self._bpf(MAP_CREATE, struct.pack("<IIII", MAP_RINGBUF, 0, 0, RING))
        self._fds.append(ring)
        self._maps.append(mmap.mmap(ring, PAGE, mmap.MAP_SHARED))
        self._maps.append(
            mmap.mmap(ring, PAGE + 2 * RING, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        )
        code = self._program(ring)
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

    def _program(self, ring: int) -> bytes:
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
            _insn(0x63, 10, 0, -4),
            _insn(0xBF, 2, 10),
            _insn(0x07, 2, imm=-4),
            _insn(0x18, 1, 1, imm=self._processes) + _insn(0),
            _insn(0x85, imm=MAP_LOOKUP),
            (0x15, 0, 0),  # another process: out
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

    # -- whose ----------------------------------------------------------------------------------

    def add(self, pid: int) -> None:
        """Watch a process from now on."""
        self._change(MAP_UPDATE, pid)

    def remove(self, pid: int) -> None:
        """Watch it no longer, and forget what it gave."""
        self._change(MAP_DELETE, pid)
        self._kept.pop(pid, None)

    def _change(self, command: int, pid: int) -> None:
        key, value = (ctypes.create_string_buffer(struct.pack("<I", n), 4) for n in (pid, 1))
        places = ctypes.addressof(key), ctypes.addressof(value)
        try:
            self._bpf(command, struct.pack("<IIQQQ", self._processes, 0, *places, 0))
        except OSError:  # there are too many, or it is not there
            pass

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
                self._keep(data[start + 8 : start + 8 + length])
            at += (length + 8 + 7) & ~7
            struct.pack_into("<Q", done, 0, at)

    def _keep(self, record: bytes) -> None:
        (task,) = struct.unpack_from("<Q", record)
        self._kept.setdefault(task >> 32, collections.deque(maxlen=KEPT)).append(record)
        if sum(map(len, self._kept.values())) > KEPT_ALL:
            max(self._kept.values(), key=len).popleft()

    def _records(self, pid: int, tid: int) -> Iterator[bytes]:
        for record in self._kept.get(pid, ()):
            if not tid or HEAD.unpack_from(record)[0] & 0xFFFFFFFF == tid:
                yield record

    def failed(self, pid: int, tid: int = 0) -> List[Tuple[int, int]]:
        """Number and result of the last failing calls of a process, or of one thread of it."""
        return [
            (
                struct.unpack_from("<q", record, HEAD.size + self._number)[0],
                HEAD.unpack_from(record)[1],
            )
            for record in self._records(pid, tid)
        ]

    def collected(self, pid: int, tid: int = 0) -> Tuple[List[Snapshot], bytes]:
        """Their snapshots, oldest first, and the pages that they number, each kept once."""
        pages: Dict[bytes, int] = {}
        snapshots: List[Snapshot] = []
        for record in self._records(pid, tid):
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


def open_pages() -> Optional[UserPages]:
    """Snapshots of failing calls from now on; None where there can be none."""
    try:
        return UserPages()
    except (OSError, KeyError, ValueError):
        return None
