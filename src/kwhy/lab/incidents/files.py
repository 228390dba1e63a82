"""Incidents of paths, files, pipes, locks and mounts."""

from typing import Final

from kwhy.lab.incidents.model import Incident, Truth

NAMEI = "fs/namei.c"
PIPE = "fs/pipe.c"
SHMEM = "mm/shmem.c"
LOCKS = "fs/locks.c"
EPOLL = "fs/eventpoll.c"
EXEC = "fs/exec.c"

# What generic_permission() asks last, before it refuses; the mode itself was found wanting before.
OVERRIDE = (
    Truth(
        NAMEI,
        "generic_permission",
        "capable_wrt_inode_uidgid(inode, CAP_DAC_OVERRIDE)",
        holds=False,
        until="5.10",
    ),
    Truth(
        NAMEI,
        "generic_permission",
        "capable_wrt_inode_uidgid(mnt_userns, inode, CAP_DAC_OVERRIDE)",
        holds=False,
        since="6.1",
        until="6.1",
    ),
    Truth(
        NAMEI,
        "generic_permission",
        "capable_wrt_inode_uidgid(idmap, inode, CAP_DAC_OVERRIDE)",
        holds=False,
        since="6.12",
    ),
)
MODE = Truth(NAMEI, "acl_permission_check", "(mask & ~mode)")

# Out of inodes: up to 6.1 shmem_get_inode() answers NULL and shmem_mknod() makes the errno anew.
NO_INODE = (
    Truth(SHMEM, "shmem_mknod", "inode", holds=False, until="6.1"),
    Truth(SHMEM, "shmem_reserve_inode", "sbinfo->free_ispace < BOGO_INODE_SIZE", since="6.12"),
)
NO_INODE_ROOT = (Truth(SHMEM, "shmem_reserve_inode", "!sbinfo->free_inodes", until="6.1"),)

FILES: Final[tuple[Incident, ...]] = (
    Incident("chdir_acces", "chdir", "EACCES", (*OVERRIDE, MODE), (MODE,)),
    Incident(
        "chmod_perm",
        "chmod",
        "EPERM",
        (
            Truth("fs/attr.c", "setattr_prepare", "!inode_owner_or_capable(inode)", until="5.10"),
            Truth(
                "fs/attr.c",
                "setattr_prepare",
                "!inode_owner_or_capable(mnt_userns, inode)",
                since="6.1",
                until="6.1",
            ),
            Truth(
                "fs/attr.c",
                "setattr_prepare",
                "!inode_owner_or_capable(idmap, inode)",
                since="6.12",
            ),
        ),
        trap="the call fails in a child process",
    ),
    Incident(
        "dup_mfile",
        "dup",
        "EMFILE",
        (
            Truth("fs/file.c", "alloc_fd", "fd >= end", until="6.12"),
            Truth("fs/file.c", "alloc_fd", "unlikely(fd >= end)", since="7.2"),
        ),
        trap="perror() itself calls dup() and fails the same way",
    ),
    Incident(
        "epoll_fault",
        "epoll_ctl",
        "EFAULT",
        (
            Truth(
                EPOLL,
                "__do_sys_epoll_ctl",
                "ep_op_has_event(op) && copy_from_user(&epds, event, sizeof(struct epoll_event))",
                atom="copy_from_user(&epds, event, sizeof(struct epoll_event))",
            ),
        ),
    ),
    Incident(
        "epoll_file",
        "epoll_ctl",
        "EPERM",
        (
            Truth(EPOLL, "do_epoll_ctl", "!file_can_poll(tf.file)", until="6.1"),
            Truth(EPOLL, "do_epoll_ctl", "!file_can_poll(fd_file(tf))", since="6.12", until="6.12"),
            Truth(EPOLL, "do_epoll_ctl_file", "!file_can_poll(tf->file)", since="7.2"),
        ),
        trap="up to 6.1 the errno is loaded before the test",
    ),
    Incident(
        "epoll_self",
        "epoll_ctl",
        "EINVAL",
        (
            Truth(
                EPOLL,
                "do_epoll_ctl",
                "f.file == tf.file || !is_file_epoll(f.file)",
                atom="f.file == tf.file",
                until="6.1",
            ),
            Truth(
                EPOLL,
                "do_epoll_ctl",
                "fd_file(f) == fd_file(tf) || !is_file_epoll(fd_file(f))",
                atom="fd_file(f) == fd_file(tf)",
                since="6.12",
                until="6.12",
            ),
            Truth(
                EPOLL,
                "do_epoll_ctl_file",
                "f == tf->file || !is_file_epoll(f)",
                atom="f == tf->file",
                since="7.2",
            ),
        ),
        trap="one half of a disjunction decides",
    ),
    Incident(
        "exec_2big",
        "execve",
        "E2BIG",
        (Truth(EXEC, "copy_strings", "!valid_arg_len(bprm, len)"),),
        trap="the errno is loaded before the test, another E2BIG stands in the same function",
    ),
    Incident(
        "exec_noexec",
        "execve",
        "ENOEXEC",
        (
            Truth(
                "fs/binfmt_elf.c",
                "load_elf_binary",
                "memcmp(elf_ex->e_ident, ELFMAG, SELFMAG) != 0",
                until="6.12",
            ),
            Truth(
                EXEC,
                "search_binary_handler",
                "list_for_each_entry(fmt, &formats, lh)",
                since="7.2",
                holds=False,
            ),
        ),
        (
            Truth(
                "fs/binfmt_elf.c",
                "load_elf_binary",
                "memcmp(elf_ex->e_ident, ELFMAG, SELFMAG) != 0",
                since="7.2",
            ),
        ),
        named=True,
        trap="every binary format refuses in turn; two functions are called load_elf_binary",
    ),
    Incident(
        "exec_path",
        "execve",
        "EACCES",
        (
            Truth(
                NAMEI,
                "generic_permission",
                "!(mask & MAY_EXEC) || (inode->i_mode & S_IXUGO)",
                atom="inode->i_mode & S_IXUGO",
                holds=False,
            ),
            MODE,
        ),
        (MODE,),
        trap="execvp() tries three times; the last failure, ENOENT, is not the one that it reports",
    ),
    Incident(
        "exec_txtbsy",
        "execve",
        "ETXTBSY",
        (
            Truth(
                "include/linux/fs.h",
                "deny_write_access",
                "atomic_dec_unless_positive(&inode->i_writecount)",
                holds=False,
            ),
            Truth(
                "include/linux/atomic-arch-fallback.h",
                "arch_atomic_dec_unless_positive",
                "unlikely(c > 0)",
                until="5.10",
            ),
            Truth(
                "include/linux/atomic/atomic-arch-fallback.h",
                "arch_atomic_dec_unless_positive",
                "unlikely(c > 0)",
                since="6.1",
                until="6.1",
            ),
            Truth(
                "include/linux/atomic/atomic-arch-fallback.h",
                "raw_atomic_dec_unless_positive",
                "unlikely(c > 0)",
                since="6.12",
            ),
        ),
        trap="the test is in a chain of inline functions",
    ),
    Incident(
        "fcntl_deadlk",
        "fcntl",
        "EDEADLK",
        (
            Truth(
                LOCKS,
                "posix_lock_inode",
                "likely(!posix_locks_deadlock(request, fl))",
                holds=False,
            ),
            Truth(
                LOCKS,
                "posix_locks_deadlock",
                "posix_same_owner(caller_fl, block_fl)",
                until="6.1",
            ),
            Truth(LOCKS, "posix_locks_deadlock", "posix_same_owner(caller, blocker)", since="6.12"),
        ),
        trap="either of two processes fails; the errno is loaded before the test",
    ),
    Incident(
        "fifo_nxio",
        "openat",
        "ENXIO",
        (
            Truth(
                PIPE,
                "fifo_open",
                "!is_pipe && (filp->f_flags & O_NONBLOCK) && !pipe->readers",
                atom="!pipe->readers",
            ),
        ),
        trap="the errno is loaded before a test of three parts",
    ),
    Incident(
        "flock_again",
        "flock",
        "EAGAIN",
        (
            Truth(LOCKS, "flock_lock_inode", "!(request->fl_flags & FL_SLEEP)", until="6.1"),
            Truth(LOCKS, "flock_lock_inode", "!(request->c.flc_flags & FL_SLEEP)", since="6.12"),
        ),
        trap="the errno is loaded before the test",
    ),
    Incident(
        "getcwd_range",
        "getcwd",
        "ERANGE",
        (
            Truth("fs/d_path.c", "__do_sys_getcwd", "len <= size", holds=False, until="5.10"),
            Truth("fs/d_path.c", "__do_sys_getcwd", "unlikely(len > size)", since="6.1"),
        ),
    ),
    Incident(
        "ioctl_notty",
        "ioctl",
        "ENOTTY",
        (Truth("fs/ioctl.c", "vfs_ioctl", "error == -ENOIOCTLCMD"),),
        (Truth(PIPE, "pipe_ioctl", "cmd"),),
        trap="pipe_ioctl() says ENOIOCTLCMD, which is replaced; may be a conditional move",
    ),
    Incident(
        "link_unsafe",
        "link",
        "EPERM",
        (
            Truth(
                NAMEI,
                "may_linkat",
                "safe_hardlink_source(inode) || inode_owner_or_capable(inode)",
                holds=False,
                until="5.10",
            ),
            Truth(
                NAMEI,
                "may_linkat",
                "safe_hardlink_source(mnt_userns, inode) "
                "|| inode_owner_or_capable(mnt_userns, inode)",
                holds=False,
                since="6.1",
                until="6.1",
            ),
            Truth(
                NAMEI,
                "may_linkat",
                "safe_hardlink_source(idmap, inode) || inode_owner_or_capable(idmap, inode)",
                holds=False,
                since="6.12",
            ),
        ),
        trap="what lets the call go on has a return of its own; the refusal is behind it",
    ),
    Incident(
        "mkdir_exist",
        "mkdir",
        "EEXIST",
        (
            Truth(NAMEI, "filename_create", "d_is_positive(dentry)", until="6.12"),
            Truth(
                NAMEI,
                "lookup_one_qstr_excl",
                "d_is_positive(dentry) && (flags & LOOKUP_EXCL)",
                since="7.2",
            ),
        ),
        trap="the program exits without a word",
    ),
    Incident(
        "mkdir_rofs",
        "mkdir",
        "EROFS",
        (
            Truth("fs/namespace.c", "__mnt_want_write", "mnt_is_readonly(m)", until="6.1"),
            Truth("fs/namespace.c", "mnt_get_write_access", "mnt_is_readonly(m)", since="6.12"),
            Truth(
                "fs/namespace.c",
                "__mnt_is_readonly",
                "(mnt->mnt_flags & MNT_READONLY) || sb_rdonly(mnt->mnt_sb)",
                atom="mnt->mnt_flags & MNT_READONLY",
            ),
        ),
        trap="the error is kept while the name is looked up, and returned later",
    ),
    Incident(
        "mount_nodev",
        "mount",
        "ENODEV",
        (Truth("fs/namespace.c", "do_new_mount", "!type"),),
        trap="the kernel runs modprobe meanwhile",
    ),
    Incident(
        "mount_userns",
        "mount",
        "EPERM",
        (
            Truth(
                "fs/namespace.c",
                "do_new_mount",
                "!err && !mount_capable(fc)",
                atom="!mount_capable(fc)",
            ),
        ),
        named=True,
    ),
    Incident(
        "mkdir_seccomp",
        "mkdir",
        "EPERM",
        (Truth("kernel/seccomp.c", "__seccomp_filter", "action"),),
        trap="the entry of the call is not traced, and its errno is no function's result",
    ),
    Incident(
        "noisy_unlink",
        "unlink",
        "EPERM",
        (
            Truth(
                NAMEI,
                "may_delete",
                "check_sticky(dir, inode) || IS_APPEND(inode) || IS_IMMUTABLE(inode) || "
                "IS_SWAPFILE(inode) || HAS_UNMAPPED_ID(inode)",
                atom="check_sticky(dir, inode)",
                until="5.10",
            ),
            Truth(
                NAMEI,
                "may_delete",
                "check_sticky(mnt_userns, dir, inode) || IS_APPEND(inode) || "
                "IS_IMMUTABLE(inode) || IS_SWAPFILE(inode) || HAS_UNMAPPED_ID(mnt_userns, inode)",
                atom="check_sticky(mnt_userns, dir, inode)",
                since="6.1",
                until="6.1",
            ),
            Truth(
                NAMEI,
                "may_delete",
                "check_sticky(idmap, dir, inode) || IS_APPEND(inode) || IS_IMMUTABLE(inode) || "
                "IS_SWAPFILE(inode) || HAS_UNMAPPED_ID(idmap, inode)",
                atom="check_sticky(idmap, dir, inode)",
                since="6.12",
                until="6.12",
            ),
            Truth(
                NAMEI,
                "may_delete_dentry",
                "check_sticky(idmap, dir, inode) || IS_APPEND(inode) || IS_IMMUTABLE(inode) || "
                "IS_SWAPFILE(inode) || HAS_UNMAPPED_ID(idmap, inode)",
                atom="check_sticky(idmap, dir, inode)",
                since="7.2",
            ),
        ),
        trap="81 harmless failures come first",
    ),
    Incident(
        "open_beneath",
        "openat2",
        "EXDEV",
        (Truth(NAMEI, "follow_dotdot", "unlikely(nd->flags & LOOKUP_BENEATH)"),),
        trap="an inlined callee makes the error pointer that its caller only hands on",
    ),
    Incident(
        "open_isdir",
        "openat",
        "EISDIR",
        (Truth(NAMEI, "may_open", "acc_mode & MAY_WRITE"),),
        trap="a switch, then a test",
    ),
    Incident(
        "open_loop",
        "openat",
        "ELOOP",
        (Truth(NAMEI, "reserve_stack", "unlikely(nd->total_link_count++ >= MAXSYMLINKS)"),),
        named=True,
        trap="the deciding branch runs 41 times and goes the other way 40 times",
    ),
    Incident("open_mode", "openat", "EACCES", (*OVERRIDE, MODE), (MODE,), named=True),
    Incident(
        "open_notdir",
        "openat",
        "ENOTDIR",
        (Truth(NAMEI, "link_path_walk", "unlikely(!d_can_lookup(nd->path.dentry))"),),
    ),
    Incident(
        "open_toolong",
        "openat",
        "ENAMETOOLONG",
        (Truth("fs/libfs.c", "simple_lookup", "dentry->d_name.len > NAME_MAX"),),
        trap="reached by an indirect call, returned as an error pointer",
    ),
    Incident(
        "pipe_again",
        "read",
        "EAGAIN",
        (
            Truth(PIPE, "pipe_read", "filp->f_flags & O_NONBLOCK", until="6.1"),
            Truth(
                PIPE,
                "pipe_read",
                "(filp->f_flags & O_NONBLOCK) || (iocb->ki_flags & IOCB_NOWAIT)",
                atom="filp->f_flags & O_NONBLOCK",
                since="6.12",
                until="6.12",
            ),
            Truth(
                PIPE,
                "anon_pipe_read",
                "(filp->f_flags & O_NONBLOCK) || (iocb->ki_flags & IOCB_NOWAIT)",
                atom="filp->f_flags & O_NONBLOCK",
                since="7.2",
            ),
        ),
    ),
    Incident(
        "pipe_broken",
        "write",
        "EPIPE",
        (
            Truth(PIPE, "pipe_write", "!pipe->readers", until="6.12"),
            Truth(PIPE, "anon_pipe_write", "!pipe->readers", since="7.2"),
        ),
        trap="the same condition stands twice in the function",
    ),
    Incident(
        "pread_spipe",
        "pread64",
        "ESPIPE",
        (
            Truth(
                "fs/read_write.c",
                "ksys_pread64",
                "f.file->f_mode & FMODE_PREAD",
                holds=False,
                until="6.1",
            ),
            Truth(
                "fs/read_write.c",
                "ksys_pread64",
                "fd_file(f)->f_mode & FMODE_PREAD",
                holds=False,
                since="6.12",
            ),
        ),
    ),
    Incident(
        "readlink_file",
        "readlink",
        "EINVAL",
        (
            Truth(
                "fs/stat.c",
                "do_readlinkat",
                "d_is_symlink(path.dentry) || inode->i_op->readlink",
                holds=False,
                until="6.1",
            ),
            Truth(
                "fs/stat.c",
                "do_readlinkat",
                "d_is_symlink(path.dentry) || d_backing_inode(path.dentry)->i_op->readlink",
                holds=False,
                since="6.12",
            ),
        ),
        trap="which of two errors it is to be is chosen behind the test",
    ),
    Incident(
        "rename_ancestor",
        "rename",
        "EINVAL",
        (
            Truth(NAMEI, "do_renameat2", "old_dentry == trap", until="6.12"),
            Truth(NAMEI, "__start_renaming", "d1 == trap", since="7.2"),
        ),
        trap="behind the refusal good and bad runs share a tail that may try again",
    ),
    Incident(
        "rename_xdev",
        "rename",
        "EXDEV",
        (
            Truth(NAMEI, "do_renameat2", "old_path.mnt != new_path.mnt", until="6.12"),
            Truth(NAMEI, "filename_renameat2", "old_path.mnt != new_path.mnt", since="7.2"),
        ),
        trap="the errno is loaded before the test",
    ),
    Incident(
        "retry_open",
        "openat",
        "ENOSPC",
        NO_INODE,
        NO_INODE_ROOT,
        trap="a first attempt fails with ENOENT",
    ),
    Incident(
        "rmdir_notempty",
        "rmdir",
        "ENOTEMPTY",
        (Truth(SHMEM, "shmem_rmdir", "!simple_empty(dentry)"),),
        named=True,
    ),
    Incident(
        "tmpfs_full",
        "write",
        "ENOSPC",
        (
            Truth(
                SHMEM,
                "shmem_alloc_and_acct_page",
                "!shmem_inode_acct_block(inode, nr)",
                until="5.10",
            ),
            Truth(
                SHMEM,
                "shmem_alloc_and_acct_folio",
                "!shmem_inode_acct_block(inode, nr)",
                since="6.1",
                until="6.1",
            ),
            Truth(
                SHMEM,
                "shmem_inode_acct_block",
                "percpu_counter_compare(&sbinfo->used_blocks, sbinfo->max_blocks - pages) > 0",
                until="6.1",
            ),
            Truth(
                SHMEM,
                "shmem_inode_acct_blocks",
                "!percpu_counter_limited_add(&sbinfo->used_blocks, sbinfo->max_blocks, pages)",
                since="6.12",
            ),
        ),
        named=True,
        trap="the kernel tries again before it gives up",
    ),
    Incident("tmpfs_inodes", "mkdir", "ENOSPC", NO_INODE, NO_INODE_ROOT),
    Incident(
        "umount_busy",
        "umount2",
        "EBUSY",
        (
            Truth("fs/namespace.c", "do_umount", "!propagate_mount_busy(mnt, 2)", holds=False),
            Truth(
                "fs/pnode.c",
                "propagate_mount_busy",
                "!list_empty(&mnt->mnt_mounts) || do_refcount_check(mnt, refcnt)",
                atom="do_refcount_check(mnt, refcnt)",
            ),
        ),
        trap="the errno is loaded before the test",
    ),
    Incident(
        "write_badf",
        "write",
        "EBADF",
        (
            Truth("fs/read_write.c", "ksys_write", "f.file", holds=False, until="6.1"),
            Truth(
                "fs/read_write.c",
                "ksys_write",
                "fd_file(f)",
                holds=False,
                since="6.12",
                until="6.12",
            ),
            Truth("fs/read_write.c", "ksys_write", "!fd_empty(f)", holds=False, since="7.2"),
        ),
        named=True,
        trap="the errno is loaded before the test",
    ),
    Incident(
        "write_fbig",
        "write",
        "EFBIG",
        (Truth("fs/read_write.c", "generic_write_check_limits", "pos >= limit"),),
        trap="two conditions of one function return EFBIG",
    ),
)
