"""Incidents of processes: signals, terminals, priorities, namespaces, limits."""

from typing import Final

from kwhy.lab.incidents.model import Incident, Truth

FORK = "kernel/fork.c"
TTY = "drivers/tty/tty_jobctrl.c"

PROCESSES: Final[tuple[Incident, ...]] = (
    Incident(
        "clone3_inval",
        "clone3",
        "EINVAL",
        (
            Truth(
                FORK,
                "copy_process",
                "(clone_flags & CLONE_THREAD) && !(clone_flags & CLONE_SIGHAND)",
                atom="!(clone_flags & CLONE_SIGHAND)",
            ),
        ),
        trap="a dozen conditions return the same errno; two bit tests become one comparison",
    ),
    Incident(
        "fork_nproc",
        "clone",
        "EAGAIN",
        (
            Truth(
                FORK,
                "copy_process",
                "p->real_cred->user != INIT_USER && !capable(CAP_SYS_RESOURCE) && "
                "!capable(CAP_SYS_ADMIN)",
                atom="!capable(CAP_SYS_ADMIN)",
            ),
        ),
        trap="the errno is loaded before two nested tests",
    ),
    Incident(
        "futex_again",
        "futex",
        "EAGAIN",
        (
            Truth("kernel/futex/core.c", "futex_wait_setup", "uval != val", until="5.10"),
            Truth("kernel/futex/waitwake.c", "futex_wait_setup", "uval != val", since="6.1"),
        ),
        trap="the call fails in a thread",
    ),
    Incident(
        "kill_srch",
        "kill",
        "ESRCH",
        (
            Truth(
                "kernel/signal.c",
                "kill_pid_info",
                "likely(!p || error != -ESRCH)",
                atom="!p",
                until="6.1",
            ),
            Truth("kernel/signal.c", "kill_pid_info", "p", holds=False, until="6.1"),
            Truth(
                "kernel/signal.c",
                "kill_pid_info_type",
                "likely(!p || error != -ESRCH)",
                atom="!p",
                since="6.12",
            ),
            Truth("kernel/signal.c", "kill_pid_info_type", "p", holds=False, since="6.12"),
        ),
        named=True,
        trap="the errno is loaded before the test",
    ),
    Incident(
        "module_perm",
        "init_module",
        "EPERM",
        (
            Truth(
                "kernel/module.c",
                "may_init_module",
                "!capable(CAP_SYS_MODULE) || modules_disabled",
                atom="!capable(CAP_SYS_MODULE)",
                until="5.10",
            ),
            Truth(
                "kernel/module/main.c",
                "may_init_module",
                "!capable(CAP_SYS_MODULE) || modules_disabled",
                atom="!capable(CAP_SYS_MODULE)",
                since="6.1",
            ),
        ),
        trap="what the callee's own calls leave it to return is known: it is refusing all the same",
    ),
    Incident(
        "msgrcv_nomsg",
        "msgrcv",
        "ENOMSG",
        (Truth("ipc/msg.c", "do_msgrcv", "msgflg & IPC_NOWAIT"),),
        trap="returned as an error pointer",
    ),
    Incident(
        "nice_acces",
        "setpriority",
        "EACCES",
        (
            Truth(
                "kernel/sys.c",
                "set_one_prio",
                "niceval < task_nice(p) && !can_nice(p, niceval)",
                atom="!can_nice(p, niceval)",
            ),
        ),
    ),
    Incident(
        "prctl_option",
        "prctl",
        "EINVAL",
        (Truth("kernel/sys.c", "__do_sys_prctl", "option"),),
        trap="the default of a big switch, behind a callee that answers -ENOSYS",
    ),
    Incident(
        "ptrace_self",
        "ptrace",
        "EPERM",
        (Truth("kernel/ptrace.c", "ptrace_attach", "same_thread_group(task, current)"),),
        trap="up to 6.1 the errno is loaded before two tests",
    ),
    Incident(
        "rlimit_perm",
        "prlimit64",
        "EPERM",
        (
            Truth(
                "kernel/sys.c",
                "do_prlimit",
                "new_rlim->rlim_max > rlim->rlim_max && !capable(CAP_SYS_RESOURCE)",
                atom="!capable(CAP_SYS_RESOURCE)",
            ),
        ),
        trap="the same errno is made earlier in the function, and the way on is long",
    ),
    Incident(
        "setns_perm",
        "setns",
        "EPERM",
        (
            Truth(
                "net/core/net_namespace.c",
                "netns_install",
                "!ns_capable(net->user_ns, CAP_SYS_ADMIN) || "
                "!ns_capable(nsset->cred->user_ns, CAP_SYS_ADMIN)",
                atom="!ns_capable(net->user_ns, CAP_SYS_ADMIN)",
            ),
        ),
        named=True,
        trap="two calls of one function in one condition",
    ),
    Incident(
        "settime_perm",
        "settimeofday",
        "EPERM",
        (Truth("security/commoncap.c", "cap_settime", "!capable(CAP_SYS_TIME)"),),
        trap="the result is computed from a truth value without any jump",
    ),
    Incident(
        "tcsetattr_orphan",
        "ioctl",
        "EIO",
        (Truth(TTY, "__tty_check_change", "is_current_pgrp_orphaned()"),),
        named=True,
        trap="a background process, three forks away from the command",
    ),
    Incident(
        "tiocspgrp_fault",
        "ioctl",
        "EFAULT",
        (Truth(TTY, "tiocspgrp", "get_user(pgrp_nr, p)"),),
        trap="an exception is the branch",
    ),
    Incident(
        "uidmap_overlap",
        "write",
        "EINVAL",
        (
            Truth(
                "kernel/user_namespace.c",
                "mappings_overlap",
                "(prev_upper_first <= upper_last) && (prev_upper_last >= upper_first)",
            ),
            Truth("kernel/user_namespace.c", "map_write", "mappings_overlap(&new_map, &extent)"),
        ),
        trap="a loop over lines with nine ways out, characters looked up in a table",
    ),
    Incident(
        "unshare_threads",
        "unshare",
        "EINVAL",
        (
            Truth(FORK, "check_unshare_flags", "!thread_group_empty(current)"),
            Truth(
                "include/linux/sched/signal.h",
                "thread_group_empty",
                "list_empty(&p->thread_group)",
                holds=False,
                until="6.1",
            ),
            Truth(
                "include/linux/sched/signal.h",
                "thread_group_empty",
                "thread_group_leader(p) && list_is_last(&p->thread_node, &p->signal->thread_head)",
                atom="list_is_last(&p->thread_node, &p->signal->thread_head)",
                holds=False,
                since="6.12",
            ),
        ),
    ),
    Incident(
        "wait_child",
        "wait4",
        "ECHILD",
        (
            Truth(
                "kernel/exit.c",
                "do_wait",
                "(wo->wo_type < PIDTYPE_MAX) && "
                "(!wo->wo_pid || !pid_has_task(wo->wo_pid, wo->wo_type))",
                atom="!wo->wo_pid",
                until="5.10",
            ),
            Truth(
                "kernel/exit.c",
                "__do_wait",
                "(wo->wo_type < PIDTYPE_MAX) && "
                "(!wo->wo_pid || !pid_has_task(wo->wo_pid, wo->wo_type))",
                atom="!wo->wo_pid",
                since="6.1",
            ),
        ),
        trap="the errno travels through memory",
    ),
)
