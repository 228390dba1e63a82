"""The incidents and their truths.

Each truth was established by reading the source of Debian's 5.10, 6.1, 6.12 and 7.2 kernels; a test
finds every text in the function it is said to stand in.
"""

from typing import Final

from kwhy.lab.incidents.files import FILES
from kwhy.lab.incidents.memory import MEMORY
from kwhy.lab.incidents.model import Incident
from kwhy.lab.incidents.network import NETWORK
from kwhy.lab.incidents.processes import PROCESSES

INCIDENTS: Final[dict[str, Incident]] = {
    incident.name: incident
    for incident in sorted((*FILES, *MEMORY, *NETWORK, *PROCESSES), key=lambda each: each.name)
}
"""Every incident by its name."""

NAMED: Final[tuple[str, ...]] = tuple(name for name in INCIDENTS if INCIDENTS[name].named)
"""The incidents of the project's first promise."""

CARRIERS: Final[dict[str, tuple[str, ...]]] = {
    "__do_wait": ("do_wait",),
    "__io_account_mem": (
        "io_account_mem",
        "io_sqe_buffer_register",
        "io_sqe_buffers_register",
    ),
    "acl_permission_check": ("generic_permission",),
    "arch_atomic_dec_unless_positive": ("do_open_execat",),
    "can_mmap_file": ("do_mmap",),
    "check_unshare_flags": ("ksys_unshare",),
    "deny_write_access": ("do_open_execat",),
    "do_new_mount": ("path_mount", "do_mount"),
    "do_umount": ("path_umount",),
    "follow_dotdot": ("handle_dots", "walk_component"),
    "ksys_pread64": ("__x64_sys_pread64",),
    "mappings_overlap": ("map_write",),
    "may_init_module": ("__do_sys_init_module", "__x64_sys_init_module"),
    "posix_locks_deadlock": ("posix_lock_inode",),
    "raw_atomic_dec_unless_positive": ("do_open_execat",),
    "reserve_stack": ("pick_link", "step_into", "step_into_slowpath"),
    "search_binary_handler": ("exec_binprm", "bprm_execve"),
    "shmem_inode_acct_block": ("shmem_alloc_and_acct_page", "shmem_alloc_and_acct_folio"),
    "shmem_reserve_inode": ("shmem_get_inode", "__shmem_get_inode"),
    "sock_error": ("__inet_stream_connect", "sock_alloc_send_pskb"),
    "tcp_ulp_find": ("tcp_set_ulp",),
    "thread_group_empty": ("ksys_unshare",),
    "tiocspgrp": ("tty_jobctrl_ioctl",),
    "unix_find_bsd": ("unix_find_other",),
    "unix_find_socket_byinode": ("unix_find_other",),
    "vfs_ioctl": ("__x64_sys_ioctl",),
}
"""The functions into which compilers inline a function of a truth: there its code is found."""


def carriers(function: str) -> tuple[str, ...]:
    """Symbols whose code may hold that source function: itself, then those that it is inlined in.

    A system call's body (``__do_sys_NAME``) is mostly part of its entry point (``__x64_sys_NAME``).
    """
    entry = (function.replace("__do_sys_", "__x64_sys_"),) * function.startswith("__do_sys_")
    return (function, *entry, *CARRIERS.get(function, ()))
