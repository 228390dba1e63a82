"""Which function sleeps for what: the table that sends a stack to the code that proves its wait."""

import re
from dataclasses import replace

from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.locks import Locks, Recogniser
from kwhy.diagnose.hang.others import Others
from kwhy.diagnose.hang.stacks import Frame, Stack

#: What any sleeper goes through on its way to sleep, and says nothing about why.
_GENERIC = re.compile(
    r"^(__schedule|schedule(_timeout.*|_preempt_disabled|_hrtimeout.*|_idle)?|io_schedule(_timeout)?|"
    r"bit_wait(_io)?|out_of_line_wait_on_bit.*|wait_woken|rt_mutex_schedule|schedule_rtlock|"
    r"prepare_to_wait.*)$"
)
_DEPTH = 14  # frames from the innermost in which the reason must stand


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
    ("__flush_work.* __flush_workqueue flush_workqueue drain_workqueue", "workqueue"),
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


class Recognisers:
    """Sends each stack to the first recogniser that knows one of its innermost functions."""

    def __init__(self, locks: Locks, others: Others) -> None:
        proven: tuple[tuple[str, Recogniser], ...] = (
            ("__mutex_lock.* mutex_lock.* __ww_mutex_lock.*", locks.mutex),
            ("rwsem_down_read_slowpath rwsem_down_write_slowpath", locks.rwsem),
            ("__down_read.* __down_write.* down_read.* down_write.*", locks.rwsem),
            ("__down __down_common __down_.* down down_killable", locks.semaphore),
            ("down_interruptible down_timeout", locks.semaphore),
            ("rt_mutex_slowlock.* __rt_mutex_slowlock.* rt_mutex_lock.*", locks.rt_mutex),
            ("percpu_rwsem_wait __percpu_down_read.* percpu_down_read.*", locks.percpu_read),
            ("percpu_down_write", locks.percpu_write),
            ("futex_wait_queue futex_wait_queue_me futex_do_wait", others.futex),
            ("__futex_wait futex_wait futex_lock_pi.*", others.futex),
            ("locks_lock_inode_wait flock_lock_inode_wait posix_lock_inode_wait", others.file_lock),
            ("do_lock_file_wait fcntl_setlk __break_lease __do_sys_flock", others.file_lock),
            ("pipe_read pipe_write anon_pipe_read anon_pipe_write", others.pipe),
            ("pipe_wait_readable pipe_wait_writable", others.pipe),
            ("folio_wait_bit.* __folio_lock.* folio_wait_writeback.*", others.folio),
            ("wait_on_page_bit.* __lock_page.*", others.folio),
            ("wait_for_common.* __wait_for_common wait_for_completion.*", locks.completion),
        )
        self._proven = [(_pattern(names), way) for names, way in proven]
        self._plain = [(_pattern(names), kind) for names, kind in _PLAIN]
        self._others = others

    def claim(self, stack: Stack) -> Claim | None:
        """What the task of ``stack`` waits for; None for one whose stack is not known."""
        frames = [f for f in stack.frames[:_DEPTH] if not f.guessed]
        if not frames:
            return None
        outer = {f.name for f in frames}
        for frame in frames:
            for pattern, recognise in self._proven:
                if pattern.match(frame.name):
                    found = self._try(recognise, stack, frame)
                    if found is not None:
                        return self._refine(found, outer)
        return self._by_name(stack)

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
