"""System calls' arguments in words: how many there are, of which kind, and the names of flags.

A trace has the six argument registers of every call, used or not. The shapes below are from
include/linux/syscalls.h (Linux 7.2; calls that were removed since 5.10 from there) and arch/x86 for
those that are the architecture's own.
"""

import signal
from dataclasses import replace
from typing import Final

from kwhy.verdict import FailedCall

# One letter for each argument: d int, o file mode, p pointer, s signal, u unsigned long or size,
# x flags. By shape, as many calls share one.
_SHAPES: Final = {
    "": (
        "fork getegid geteuid getgid getpgrp getpid getppid gettid getuid inotify_init munlockall "
        "pause restart_syscall rseq_slice_yield rt_sigreturn sched_yield setsid sync uprobe "
        "uretprobe vfork vhangup"
    ),
    "d": (
        "alarm close dup epoll_create eventfd exit exit_group fchdir fdatasync fsync getpgid "
        "getsid io_destroy iopl personality pkey_free sched_get_priority_max "
        "sched_get_priority_min sched_getscheduler setfsgid setfsuid setgid setuid syncfs "
        "timer_delete timer_getoverrun"
    ),
    "p": (
        "acct adjtimex chdir chroot mq_unlink pipe rmdir set_tid_address shmdt swapoff sysinfo "
        "time times uname unlink uselib"
    ),
    "u": "brk unshare",
    "x": "epoll_create1 inotify_init1 memfd_secret mlockall umask userfaultfd",
    "dd": (
        "dup2 flock getpriority inotify_rm_watch ioprio_get listen msgget setns setpgid setregid "
        "setreuid shutdown"
    ),
    "do": "fchmod",
    "dp": (
        "clock_adjtime clock_getres clock_gettime clock_settime fremovexattr fstat fstatfs "
        "getgroups getitimer getrlimit getrusage io_uring_setup mq_notify sched_getparam "
        "sched_rr_get_interval sched_setparam setgroups setrlimit timer_gettime timerfd_gettime"
    ),
    "ds": "kill tkill",
    "du": "arch_prctl ftruncate",
    "dx": ("eventfd2 fchroot landlock_restrict_self pidfd_open process_mrelease timerfd_create"),
    "pd": "access setdomainname sethostname swapon",
    "po": "chmod creat mkdir",
    "pp": (
        "gettimeofday link lremovexattr lstat nanosleep pivot_root removexattr rename "
        "settimeofday sigaltstack stat statfs symlink utime utimes"
    ),
    "pu": "clone3 getcwd rt_sigpending rt_sigsuspend set_robust_list truncate",
    "px": "delete_module fsopen memfd_create pipe2 umount2",
    "up": "io_setup ustat",
    "uu": "capget capset mlock munlock munmap",
    "xd": "fanotify_init",
    "xu": "pkey_alloc",
    "ddd": "fchown ioprio_set semget setpriority setresgid setresuid socket",
    "ddp": "msgctl sched_getaffinity sched_setaffinity sched_setscheduler shmctl",
    "dds": "tgkill",
    "ddu": "fcntl ioctl",
    "ddx": "close_range dup3 pidfd_getfd",
    "dpd": "bind bpf connect faccessat getdents getdents64 shmat syslog",
    "dpo": "fchmodat mkdirat",
    "dpp": (
        "accept futimesat get_robust_list getpeername getsockname io_cancel mq_getsetattr "
        "setitimer timer_create"
    ),
    "dpu": "flistxattr modify_ldt read semop set_mempolicy signalfd write",
    "dpx": (
        "finit_module fspick inotify_add_watch open_by_handle_at open_tree recvmsg sched_setattr "
        "sendmsg unlinkat"
    ),
    "dsp": "rt_sigqueueinfo",
    "dud": "lseek",
    "dup": "io_submit",
    "duu": "readahead sysfs",
    "dux": "shmget",
    "dxd": "fsmount membarrier",
    "dxp": "seccomp",
    "pdd": "chown lchown poll",
    "pdp": "symlinkat",
    "pou": "mknod",
    "ppd": "readlink",
    "ppp": "execve getcpu getresgid getresuid",
    "ppu": "listxattr llistxattr",
    "ppx": "lsm_list_modules",
    "pup": "init_module",
    "pux": "getrandom landlock_create_ruleset",
    "pxo": "open",
    "upu": "lookup_dcookie readv writev",
    "uud": "ioperm madvise",
    "uup": "mincore",
    "uuu": "mprotect",
    "uux": "map_shadow_stack mlock2 mseal msync",
    "dddp": "epoll_ctl quotactl_fd reboot socketpair",
    "dddu": "semctl",
    "ddpd": "io_uring_register",
    "ddpp": "prlimit64",
    "ddpu": "sendfile",
    "ddpx": "landlock_add_rule",
    "ddsp": "rt_tgsigqueueinfo",
    "dduu": "fallocate",
    "ddux": "tee",
    "dpdd": "epoll_wait",
    "dpdp": "quotactl removexattrat renameat wait4",
    "dpdx": "faccessat2 lsm_set_self_attr sched_getattr sendmmsg",
    "dpou": "mknodat",
    "dpox": "fchmodat2",
    "dppd": "accept4 readlinkat",
    "dppu": "fgetxattr openat2 rt_sigaction rt_sigprocmask",
    "dppx": "cachestat lsm_get_self_attr newfstatat utimensat",
    "dpud": "msgsnd",
    "dpup": "semtimedop",
    "dpuu": "pread64 pwrite64",
    "dpux": "signalfd4 vmsplice",
    "dpxo": "openat",
    "dspx": "pidfd_send_signal",
    "dupp": "migrate_pages",
    "duud": "fadvise64",
    "duux": "sync_file_range",
    "dxpp": "clock_nanosleep timer_settime timerfd_settime",
    "pdop": "mq_open",
    "pdxs": "rseq",
    "pppd": "request_key",
    "pppu": "getxattr lgetxattr rt_sigtimedwait",
    "ppux": "listmount listns statmount",
    "pxdd": "futex_requeue",
    "pxdx": "futex_wake",
    "uupx": "kexec_load",
    "uuud": "pkey_mprotect",
    "uuuu": "ptrace",
    "uuux": "set_mempolicy_home_node",
    "dddpd": "setsockopt",
    "dddpp": "getsockopt",
    "ddduu": "kcmp",
    "ddpdp": "waitid",
    "ddppd": "fsconfig",
    "ddupx": "kexec_file_load",
    "dpddx": "fchownat",
    "dpdpd": "move_mount",
    "dpdpu": "listxattrat",
    "dpdpx": "linkat renameat2",
    "dpdxp": "recvmmsg",
    "dpppp": "select",
    "dpppx": "execveat name_to_handle_at",
    "dppud": "file_getattr file_setattr",
    "dppux": "fsetxattr",
    "dpudp": "mq_timedsend",
    "dpudx": "process_madvise",
    "dpupp": "mq_timedreceive",
    "dpuud": "msgrcv",
    "dpxpu": "mount_setattr open_tree_attr",
    "dpxxp": "statx",
    "duupp": "io_getevents",
    "duuuu": "keyctl prctl",
    "pdddx": "perf_event_open",
    "pdppu": "ppoll",
    "pdxpd": "futex_waitv",
    "pppud": "add_key",
    "pppux": "lsetxattr setxattr",
    "pppxp": "mount",
    "ppuux": "get_mempolicy",
    "upuuu": "preadv pwritev",
    "uuuux": "remap_file_pages",
    "uuuxu": "mremap",
    "xuppu": "clone",
    "dddxpu": "io_uring_enter",
    "dpddpu": "epoll_pwait",
    "dpdppu": "epoll_pwait2 getxattrat setxattrat",
    "dpdpux": "copy_file_range splice",
    "dppppp": "pselect6",
    "dpupux": "process_vm_readv process_vm_writev",
    "dpuupd": "sendto",
    "dpuupp": "recvfrom",
    "dupppx": "move_pages",
    "duuppp": "io_pgetevents",
    "dxdddp": "fanotify_mark",
    "pddppd": "futex",
    "puxxpd": "futex_wait",
    "upuuux": "preadv2 pwritev2",
    "uuupux": "mbind",
    "uuxxdu": "mmap",
}

SHAPE: Final = {name: shape for shape, names in _SHAPES.items() for name in names.split()}
"""The kinds of arguments by the call's name."""

Flags = dict[int, str]

# include/uapi/asm-generic/fcntl.h and arch/x86: values of x86-64
_OPEN: Final[Flags] = {
    0x3: "O_ACCMODE", 0x40: "O_CREAT", 0x80: "O_EXCL", 0x100: "O_NOCTTY", 0x200: "O_TRUNC",
    0x400: "O_APPEND", 0x800: "O_NONBLOCK", 0x101000: "O_SYNC", 0x1000: "O_DSYNC",
    0x4000: "O_DIRECT", 0x8000: "O_LARGEFILE", 0x410000: "O_TMPFILE", 0x10000: "O_DIRECTORY",
    0x20000: "O_NOFOLLOW", 0x40000: "O_NOATIME", 0x80000: "O_CLOEXEC", 0x200000: "O_PATH",
}  # fmt: skip
# include/uapi/asm-generic/mman-common.h
_PROT: Final[Flags] = {1: "PROT_READ", 2: "PROT_WRITE", 4: "PROT_EXEC"}
_MAP: Final[Flags] = {
    0x3: "MAP_SHARED_VALIDATE", 0x1: "MAP_SHARED", 0x2: "MAP_PRIVATE", 0x10: "MAP_FIXED",
    0x20: "MAP_ANONYMOUS", 0x100: "MAP_GROWSDOWN", 0x800: "MAP_DENYWRITE", 0x2000: "MAP_LOCKED",
    0x4000: "MAP_NORESERVE", 0x8000: "MAP_POPULATE", 0x20000: "MAP_STACK", 0x40000: "MAP_HUGETLB",
    0x80000: "MAP_SYNC", 0x100000: "MAP_FIXED_NOREPLACE",
}  # fmt: skip
# include/uapi/linux/sched.h
_CLONE: Final[Flags] = {
    0x80: "CLONE_NEWTIME", 0x100: "CLONE_VM", 0x200: "CLONE_FS", 0x400: "CLONE_FILES",
    0x800: "CLONE_SIGHAND", 0x1000: "CLONE_PIDFD", 0x2000: "CLONE_PTRACE", 0x4000: "CLONE_VFORK",
    0x8000: "CLONE_PARENT", 0x10000: "CLONE_THREAD", 0x20000: "CLONE_NEWNS",
    0x40000: "CLONE_SYSVSEM", 0x80000: "CLONE_SETTLS", 0x100000: "CLONE_PARENT_SETTID",
    0x200000: "CLONE_CHILD_CLEARTID", 0x1000000: "CLONE_CHILD_SETTID",
    0x2000000: "CLONE_NEWCGROUP", 0x4000000: "CLONE_NEWUTS", 0x8000000: "CLONE_NEWIPC",
    0x10000000: "CLONE_NEWUSER", 0x20000000: "CLONE_NEWPID", 0x40000000: "CLONE_NEWNET",
}  # fmt: skip
# include/uapi/linux/mount.h
_MS: Final[Flags] = {
    1: "MS_RDONLY", 2: "MS_NOSUID", 4: "MS_NODEV", 8: "MS_NOEXEC", 32: "MS_REMOUNT",
    4096: "MS_BIND", 8192: "MS_MOVE", 16384: "MS_REC", 1 << 17: "MS_UNBINDABLE",
    1 << 18: "MS_PRIVATE", 1 << 19: "MS_SLAVE", 1 << 20: "MS_SHARED",
}  # fmt: skip
# include/uapi/linux/fcntl.h
_AT: Final[Flags] = {
    0x100: "AT_SYMLINK_NOFOLLOW", 0x200: "AT_REMOVEDIR", 0x400: "AT_SYMLINK_FOLLOW",
    0x800: "AT_NO_AUTOMOUNT", 0x1000: "AT_EMPTY_PATH",
}  # fmt: skip
# include/uapi/linux/fs.h
_RENAME: Final[Flags] = {1: "RENAME_NOREPLACE", 2: "RENAME_EXCHANGE", 4: "RENAME_WHITEOUT"}

_FLAGS: Final[dict[tuple[str, int], Flags]] = {
    ("open", 1): _OPEN,
    ("openat", 2): _OPEN,
    ("mmap", 2): _PROT,
    ("mmap", 3): _MAP,
    ("mprotect", 2): _PROT,
    ("clone", 0): _CLONE,
    ("unshare", 0): _CLONE,
    ("setns", 1): _CLONE,
    ("mount", 3): _MS,
    ("unlinkat", 2): _AT,
    ("linkat", 4): _AT,
    ("fchownat", 4): _AT,
    ("newfstatat", 3): _AT,
    ("execveat", 4): _AT,
    ("renameat2", 4): _RENAME,
}

# include/linux/socket.h, include/linux/net.h
_FAMILY: Final[Flags] = {
    1: "AF_UNIX", 2: "AF_INET", 10: "AF_INET6", 16: "AF_NETLINK", 17: "AF_PACKET", 38: "AF_ALG",
    40: "AF_VSOCK",
}  # fmt: skip
# include/uapi/linux/fcntl.h, include/uapi/asm-generic/fcntl.h
_FCNTL: Final[Flags] = {
    0: "F_DUPFD", 1: "F_GETFD", 2: "F_SETFD", 3: "F_GETFL", 4: "F_SETFL", 5: "F_GETLK",
    6: "F_SETLK", 7: "F_SETLKW", 8: "F_SETOWN", 9: "F_GETOWN", 1024: "F_SETLEASE",
    1025: "F_GETLEASE", 1030: "F_DUPFD_CLOEXEC", 1031: "F_SETPIPE_SZ", 1032: "F_GETPIPE_SZ",
    1033: "F_ADD_SEALS", 1034: "F_GET_SEALS",
}  # fmt: skip
# include/uapi/linux/io_uring.h
_URING: Final[Flags] = {
    0: "IORING_REGISTER_BUFFERS", 1: "IORING_UNREGISTER_BUFFERS", 2: "IORING_REGISTER_FILES",
    3: "IORING_UNREGISTER_FILES", 4: "IORING_REGISTER_EVENTFD", 9: "IORING_REGISTER_PROBE",
    15: "IORING_REGISTER_BUFFERS2", 16: "IORING_REGISTER_BUFFERS_UPDATE",
    22: "IORING_REGISTER_PBUF_RING",
}  # fmt: skip
# include/uapi/asm-generic/ioctls.h, include/uapi/linux/fs.h
_IOCTL: Final[Flags] = {
    0x5401: "TCGETS", 0x5402: "TCSETS", 0x5403: "TCSETSW", 0x5404: "TCSETSF", 0x5405: "TCGETA",
    0x5406: "TCSETA", 0x5407: "TCSETAW", 0x5408: "TCSETAF", 0x5409: "TCSBRK", 0x540A: "TCXONC",
    0x540B: "TCFLSH", 0x540C: "TIOCEXCL", 0x540D: "TIOCNXCL", 0x540E: "TIOCSCTTY",
    0x540F: "TIOCGPGRP", 0x5410: "TIOCSPGRP", 0x5411: "TIOCOUTQ", 0x5412: "TIOCSTI",
    0x5413: "TIOCGWINSZ", 0x5414: "TIOCSWINSZ", 0x541B: "FIONREAD", 0x541D: "TIOCCONS",
    0x5421: "FIONBIO", 0x5422: "TIOCNOTTY", 0x5423: "TIOCSETD", 0x5424: "TIOCGETD",
    0x5429: "TIOCGSID", 0x5450: "FIONCLEX", 0x5451: "FIOCLEX", 0x5452: "FIOASYNC",
    0x40049409: "FICLONE", 0x4020940D: "FICLONERANGE",
}  # fmt: skip

_CHOICES: Final[dict[tuple[str, int], Flags]] = {
    ("ioctl", 1): _IOCTL,
    ("socket", 0): _FAMILY,
    ("fcntl", 1): _FCNTL,
    ("io_uring_register", 1): _URING,
}

_AT_FDCWD: Final = -100  # include/uapi/linux/fcntl.h
_LOW: Final = 0x10000  # the lowest address that mmap gives out (vm.mmap_min_addr)
_WORD: Final = 0xFFFFFFFF
_SIGRTMIN: Final = 32  # as the kernel counts them


def decode(call: FailedCall) -> FailedCall:
    """``call`` with the arguments that it really has, and these in words (``decoded``).

    A call that is not known keeps its six registers; arguments that were decoded before stay.
    """
    shape = SHAPE.get(call.syscall)
    args = call.args if shape is None else call.args[: len(shape)]
    words = [
        (call.decoded[i] if i < len(call.decoded) else "")
        or _argument(call.syscall, i, arg, shape[i] if shape is not None else "u")
        for i, arg in enumerate(args)
    ]
    return replace(call, args=args, decoded=tuple(words))


def text(call: FailedCall) -> str:
    """The call as strace would print it: ``ioctl(3, TCSETSW, …)``; an ellipsis is an address."""
    if call.barred:
        return f"{call.syscall}(?)"
    return f"{call.syscall}({', '.join(decode(call).decoded)})"


def _argument(syscall: str, index: int, arg: str, kind: str) -> str:
    try:
        value = int(arg, 16)
    except ValueError:
        return arg
    number = (value & _WORD) - (value & 0x80000000) * 2  # as a C int
    flags, choices = _FLAGS.get((syscall, index)), _CHOICES.get((syscall, index))
    if flags is not None:
        return _flags(value & _WORD, flags, 0 if flags is _OPEN else None)
    if choices is not None:
        return choices.get(value & _WORD, f"{value & _WORD:#x}" if kind == "x" else str(number))
    if kind == "p":
        return "NULL" if value == 0 else "…"
    if kind == "o":
        return f"0{value & 0xFFFF:o}" if value & 0xFFFF else "0"
    if kind == "s":
        return _signal(number)
    if kind == "x":
        return f"{value & _WORD:#x}" if number else "0"
    if kind == "d":
        return "AT_FDCWD" if number == _AT_FDCWD and _takes_dirfd(syscall) else str(number)
    if value > (1 << 64) - _LOW:
        return str(value - (1 << 64))
    return str(value) if value < _LOW else ("…" if value > _WORD else f"{value:#x}")


def _takes_dirfd(syscall: str) -> bool:
    others = ("statx", "name_to_handle_at", "open_tree", "move_mount", "mount_setattr", "fspick")
    return syscall.rstrip("0123456789").endswith("at") or syscall in others


def _flags(value: int, names: Flags, access: int | None) -> str:
    """Flags by name, the rest in hex; with ``access`` the two low bits are O_RDONLY and so on."""
    found = []
    if access is not None:
        found.append(("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[value & 3])
        value &= ~3
    for bits in sorted(names, key=lambda b: -b.bit_count()):
        if value & bits == bits:
            found.append(names[bits])
            value &= ~bits
    if value:
        found.append(f"{value:#x}")
    return "|".join(found) or "0"


def _signal(number: int) -> str:
    """SIGKILL for 9; the kernel's numbers are those of the desk on every Linux that kwhy knows."""
    if number >= _SIGRTMIN:
        return str(number)
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
