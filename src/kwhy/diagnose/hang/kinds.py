"""Which function sleeps for what: the table that sends a stack to the code that proves its wait."""

import re
from dataclasses import replace
from functools import partial

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang import (
    channels,
    disks,
    family,
    file_locks,
    futexes,
    journals,
    messages,
    polled,
    workers,
)
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.locks import Recogniser
from kwhy.diagnose.hang.look import Look, Prover
from kwhy.diagnose.hang.others import Others
from kwhy.diagnose.hang.stacks import Frame, Stack

#: What any sleeper goes through on its way to sleep, and says nothing about why.
_GENERIC = re.compile(
    r"^(__schedule|schedule(_timeout.*|_preempt_disabled|_hrtimeout.*|_idle)?|io_schedule(_timeout)?|"
    r"bit_wait(_io)?|out_of_line_wait_on_bit.*|wait_woken|rt_mutex_schedule|schedule_rtlock|"
    r"prepare_to_wait.*)$"
)
_DEPTH = 14  # frames from the innermost in which the reason must stand
_THROTTLED = "it is slowed down, because its control group is above memory.high"

#: Who sleeps for what, where no list proves it: functions in order of how much they tell.
_PLAIN: tuple[tuple[str, str], ...] = (
    ("do_wait kernel_wait4 kernel_waitid", "child"),
    ("do_nanosleep hrtimer_nanosleep msleep msleep_interruptible common_nsleep.*", "timer"),
    ("do_epoll_wait ep_poll", "epoll"),
    ("do_sys_poll do_poll do_select core_sys_select", "poll"),
    ("__x64_sys_pause do_sigtimedwait sigsuspend __do_sys_rt_sigsuspend", "signal"),
    ("ptrace_stop do_signal_stop do_jobctl_trap", "stopped"),
    ("__refrigerator cgroup_enter_frozen do_freezer_trap", "freezer"),
    ("synchronize_rcu.* __wait_rcu_gp synchronize_srcu rcu_barrier", "rcu"),
    ("__flush_work.* flush_work __flush_workqueue flush_workqueue drain_workqueue", "workqueue"),
    ("request_wait_answer __fuse_simple_request fuse_simple_request", "fuse"),
    ("rpc_wait_bit_killable nfs_wait_.* __rpc_execute", "nfs"),
    ("__wait_on_buffer __lock_buffer", "buffer"),
    ("submit_bio_wait bio_await.* rq_qos_wait blk_mq_get_tag blk_.* __blk.*", "io"),
    ("sk_wait_data sk_stream_wait_.* inet_csk_accept __skb_wait_for_more_packets", "socket"),
    ("unix_stream_.* unix_wait_for_peer inet_wait_for_connect tcp_recvmsg.*", "socket"),
    ("kthread_worker_fn worker_thread rescuer_thread smpboot_thread_fn kthreadd kswapd", "idle"),
    ("kcompactd khugepaged oom_reaper rcu_gp_.*kthread rcu_tasks_.*thread", "idle"),
    ("kauditd_thread khungtaskd kthread devtmpfsd psimon", "idle"),
    ("__wait_on_bit.*", "bit"),
)


_PROVERS: tuple[tuple[str, Prover], ...] = (
    ("futex_wait_queue futex_wait_queue_me futex_do_wait __futex_wait futex_wait", futexes.futex),
    ("futex_lock_pi.* futex_wait_requeue_pi.* do_futex", futexes.futex),
    ("fifo_open wait_for_partner", channels.fifo_open),
    ("pipe_read pipe_write anon_pipe_read anon_pipe_write", channels.pipe),
    ("pipe_wait_readable pipe_wait_writable", channels.pipe),
    ("wait_for_dump_helpers", channels.dumped),
    ("request_wait_answer", channels.fuse),
    ("fanotify_handle_event fanotify_get_response", channels.scanner),
    ("handle_userfault", channels.page_fault),
    ("eventfd_read", channels.event),
    ("eventfd_write", channels.full_event),
    ("n_tty_read n_tty_write", channels.terminal),
    ("unix_wait_for_peer", channels.unix_connecting),
    ("sk_wait_data __sk_.* sk_stream_wait_.* inet_csk_accept", channels.connection),
    ("__skb_wait_for_more_packets unix_stream_.* sock_alloc_send_pskb", channels.connection),
    ("inet_wait_for_connect tcp_recvmsg.* tcp_sendmsg.* inet_stream_connect", channels.connection),
    ("locks_lock_inode_wait flock_lock_inode_wait posix_lock_inode_wait", file_locks.file_lock),
    ("do_lock_file_wait fcntl_setlk __break_lease __do_sys_flock", file_locks.file_lock),
    ("do_wait kernel_wait4 kernel_waitid", family.child),
    ("ptrace_stop do_signal_stop do_jobctl_trap", family.stopped),
    ("__refrigerator cgroup_enter_frozen do_freezer_trap", family.frozen),
    ("get_signal", family.frozen_group),
    ("begin_new_exec de_thread flush_old_exec", family.exec_alone),
    ("coredump_wait do_coredump vfs_coredump", family.dumping),
    ("coredump_task_exit do_exit exit_mm", family.dumped),
    ("mem_cgroup_handle_over_high __mem_cgroup_handle_over_high", family.limited(_THROTTLED)),
    ("mem_cgroup_oom_synchronize", family.limited("the out-of-memory killer is off")),
    ("folio_wait_bit.* __folio_lock.* folio_wait_writeback.*", disks.folio),
    ("wait_on_page_bit.* __lock_page.*", disks.folio),
    ("__wait_on_buffer __lock_buffer", disks.buffer),
    ("submit_bio_wait bio_await.*", disks.bio),
    ("rpc_wait_bit_killable", disks.remote_call),
    ("__flush_work flush_work __cancel_work.*", workers.flush),
    ("call_usermodehelper_exec", workers.helper),
    ("wait_for_key_construction", messages.key),
    ("__flush_workqueue flush_workqueue drain_workqueue", workers.flush_all),
    ("jbd2_log_wait_commit wait_transaction_locked", journals.journal),
    ("wait_transaction_switching add_transaction_credits", journals.journal),
    ("jbd2_journal_wait_updates jbd2_journal_commit_transaction", journals.journal_updates),
    ("wb_wait_for_completion wb_wait_completion", journals.writeback),
    ("synchronize_rcu.* __wait_rcu_gp synchronize_srcu.* rcu_barrier", journals.grace_period),
    ("__do_semtimedop do_semtimedop", messages.system_v),
    ("do_msgrcv do_msgsnd", messages.system_v_message),
    ("wq_sleep", messages.posix_message),
    ("signalfd_read.* signalfd_dequeue", messages.told("signal", "a signal, by signalfd")),
    ("timerfd_read.*", messages.told("timer", "a timer of its own, by timerfd")),
    ("inotify_read", messages.told("inotify", "a change to a watched file")),
    ("fanotify_read", messages.told("inotify", "a change to a watched file")),
    ("io_cqring_wait __do_sys_io_uring_enter", messages.told("io_uring", "requests to finish")),
    ("do_sys_poll do_poll do_select core_sys_select", polled.polled),
    ("do_epoll_wait ep_poll", polled.watched),
)
"""Who proves a wait beyond a sleeping lock's, by the functions that sleep in it."""


class Recognisers:
    """Sends each stack to the first recogniser that knows one of its innermost functions."""

    def __init__(self, look: Look) -> None:
        locks = look.locks
        others = Others(look.memory, look.tasks, locks)
        proven: tuple[tuple[str, Recogniser], ...] = (
            ("__mutex_lock.* mutex_lock.* __ww_mutex_lock.*", locks.mutex),
            ("rwsem_down_read_slowpath rwsem_down_write_slowpath", locks.rwsem),
            ("__down_read.* __down_write.* down_read.* down_write.*", locks.rwsem),
            ("__down __down_common __down_.* down down_killable", locks.semaphore),
            ("down_interruptible down_timeout", locks.semaphore),
            ("rt_mutex_slowlock.* __rt_mutex_slowlock.* rt_mutex_lock.*", locks.rt_mutex),
            ("percpu_rwsem_wait __percpu_down_read.* percpu_down_read.*", locks.percpu_read),
            ("percpu_down_write", locks.percpu_write),
            *((names, partial(prove, look)) for names, prove in _PROVERS),
        )
        self._proven = [(_pattern(names), way) for names, way in proven]
        # What is completed is known further out on the stack, if at all.
        completion = "wait_for_common.* __wait_for_common wait_for_completion.*"
        self._last: list[tuple[re.Pattern[str], Recogniser]] = [
            (_pattern(completion), locks.completion),
            (_pattern("__wait_on_bit.* out_of_line_wait_on_bit.*"), partial(disks.bit, look)),
        ]
        self._plain = [(_pattern(names), kind) for names, kind in _PLAIN]
        self._others = others
        self._by_function: dict[str, tuple[list[Recogniser], list[Recogniser]]] = {}

    def claim(self, stack: Stack) -> Claim | None:
        """What the task of ``stack`` waits for; None for one whose stack is not known."""
        frames = [f for f in stack.frames[:_DEPTH] if not f.guessed]
        if not frames:
            return None
        outer = {f.name for f in frames}
        for which in (0, 1):
            for frame in frames:
                for recognise in self._ways(frame.name)[which]:
                    found = self._try(recognise, stack, frame)
                    if found is not None:
                        return self._refine(found, outer)
        return self._by_name(stack)

    def _ways(self, function: str) -> tuple[list[Recogniser], list[Recogniser]]:
        """The recognisers that know a function: those to be tried first, and the last ones."""
        if function not in self._by_function:
            first, last = (
                [way for pattern, way in ways if pattern.match(function)]
                for ways in (self._proven, self._last)
            )
            self._by_function[function] = (first, last)
        return self._by_function[function]

    def _try(self, recognise: Recogniser, stack: Stack, frame: Frame) -> Claim | None:
        try:
            return recognise(stack, frame)
        except (MissingMemory, LookupError):
            return None

    def _refine(self, claim: Claim, names: set[str]) -> Claim:
        if claim.kind == "completion":
            if names & {"kernel_clone", "_do_fork"}:
                return self._others.vfork(claim)
            for pattern, kind in self._plain:
                if kind in ("rcu", "workqueue", "io", "fuse") and any(map(pattern.match, names)):
                    return replace(claim, kind=kind)
        if claim.kind == "rcu" and "percpu_down_write" in names:
            before = f"{claim.note}; " if claim.note else ""
            return replace(claim, note=f"{before}a percpu_rw_semaphore is locked after that")
        return claim

    def _by_name(self, stack: Stack) -> Claim:
        frames = [f for f in stack.frames[:_DEPTH] if not f.guessed]
        for frame in frames:
            for pattern, kind in self._plain:
                if pattern.match(frame.name):
                    return self._others.queue(kind, stack, frame)
        speaking = next((f for f in frames if not _GENERIC.match(f.name)), frames[0])
        if any(f.name.startswith("io_schedule") for f in frames):
            return self._others.queue("io", stack, speaking)
        return self._others.queue("wait-queue", stack, speaking)


def _pattern(names: str) -> re.Pattern[str]:
    """One pattern for whole function names, given as words."""
    return re.compile(f"^(?:{'|'.join(names.split())})$")
