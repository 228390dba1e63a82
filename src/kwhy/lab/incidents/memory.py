"""Incidents of memory: mappings, limits, bad pointers, keys and seals."""

from typing import Final

from kwhy.lab.incidents.model import Incident, Truth

KEY = "security/keys/key.c"

MEMORY: Final[tuple[Incident, ...]] = (
    Incident(
        "addkey_quota",
        "add_key",
        "EDQUOT",
        (
            Truth(
                KEY,
                "key_payload_reserve",
                "delta > 0 && (key->user->qnbytes + delta > maxbytes || "
                "key->user->qnbytes + delta < key->user->qnbytes)",
                atom="key->user->qnbytes + delta > maxbytes",
            ),
        ),
        trap="one part of three decides; key_alloc() has a quota test too",
    ),
    Incident(
        "iouring_memlock",
        "io_uring_register",
        "ENOMEM",
        (
            Truth(
                "io_uring/io_uring.c", "__io_account_mem", "new_pages > page_limit", until="5.10"
            ),
            Truth("io_uring/rsrc.c", "__io_account_mem", "new_pages > page_limit", since="6.1"),
        ),
        named=True,
    ),
    Incident(
        "keyctl_nokey",
        "keyctl",
        "ENOKEY",
        (Truth("security/keys/keyctl.c", "keyctl_read_key", "IS_ERR(key_ref)"),),
        (Truth(KEY, "key_lookup", "n", holds=False),),
        trap="the same errno is made twice; first decided by a search that ends",
    ),
    Incident(
        "memfd_seal",
        "write",
        "EPERM",
        (
            Truth(
                "mm/shmem.c",
                "shmem_write_begin",
                "info->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)",
            ),
        ),
    ),
    Incident(
        "mmap_inval",
        "mmap",
        "EINVAL",
        (Truth("mm/mmap.c", "do_mmap", "!len"),),
        named=True,
        trap="the same text stands twice in the function, for two errnos",
    ),
    Incident(
        "mmap_nodev",
        "mmap",
        "ENODEV",
        (
            Truth("mm/mmap.c", "do_mmap", "!file->f_op->mmap", until="6.12"),
            Truth("mm/mmap.c", "do_mmap", "!can_mmap_file(file)", since="7.2"),
            Truth(
                "include/linux/fs.h",
                "can_mmap_file",
                "!has_mmap && !has_mmap_prepare",
                since="7.2",
            ),
        ),
    ),
    Incident(
        "mprotect_nomem",
        "mprotect",
        "ENOMEM",
        (
            Truth("mm/mprotect.c", "do_mprotect_pkey", "vma->vm_start > start", until="6.1"),
            Truth("mm/mprotect.c", "do_mprotect_pkey", "!vma", since="6.12"),
        ),
        trap="the errno is loaded before the test",
    ),
)
