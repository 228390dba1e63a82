"""Where offline execution has to stop, and what it leaves out: kernel functions by name.

Names of all supported kernels; one that a kernel does not have is ignored.
"""

from typing import Protocol

SLEEPS = "it would sleep"
LOCKED = "it would wait for a lock that somebody holds"
DIES = "it would stop the kernel"
ENDS = "it would end the task"
RUNS_USER = "it would go on in user space"
REPLACED = "it would replace the task's program, whose memory is then another"

STOPS: dict[str, str] = {
    # kernel/sched/core.c: every way to sleep ends in one of these.
    "schedule": SLEEPS, "__schedule": SLEEPS, "schedule_idle": SLEEPS, "schedule_rtlock": SLEEPS,
    "schedule_preempt_disabled": SLEEPS, "io_schedule": SLEEPS, "schedule_timeout": SLEEPS,
    "yield": SLEEPS,
    # kernel/locking: the slow paths that spin.
    "queued_spin_lock_slowpath": LOCKED, "native_queued_spin_lock_slowpath": LOCKED,
    "__pv_queued_spin_lock_slowpath": LOCKED, "queued_read_lock_slowpath": LOCKED,
    "queued_write_lock_slowpath": LOCKED, "osq_lock": LOCKED,
    "panic": DIES, "vpanic": DIES, "nmi_panic": DIES, "__stack_chk_fail": DIES,
    "machine_restart": DIES, "machine_halt": DIES, "machine_power_off": DIES,
    "native_machine_emergency_restart": DIES, "__fortify_panic": DIES, "fortify_panic": DIES,
    "usercopy_abort": DIES,
    "do_exit": ENDS, "make_task_dead": ENDS, "rewind_stack_and_make_dead": ENDS,
    "rewind_stack_do_exit": ENDS, "kthread_exit": ENDS,
    "start_thread": RUNS_USER, "begin_new_exec": REPLACED,
}  # fmt: skip
"""Functions that end a run at their entry, and why."""

SKIPS = frozenset({
    # It would be logged; nothing that the code computes depends on it (kernel/printk/printk.c).
    "_printk", "printk", "vprintk", "vprintk_emit", "_printk_deferred", "printk_deferred",
    "__warn_printk", "dump_stack", "dump_stack_lvl", "show_regs", "wake_up_klogd",
    "defer_console_output",
    # Time does not pass here (arch/x86/lib/delay.c).
    "__udelay", "__ndelay", "__const_udelay", "__delay",
    # Interrupts of other processors, and our own by the interrupt controller: no one is there.
    "native_smp_send_reschedule", "native_send_call_func_single_ipi", "native_send_call_func_ipi",
    "arch_irq_work_raise", "arch_send_call_function_single_ipi",
    # mitigations that flush or write hardware buffers
    "native_apic_mem_write", "native_apic_mem_eoi", "entry_ibpb",
    # The user's floating-point registers, of parts that the emulated processor lacks
    # (arch/x86/kernel/fpu/core.c); kernel code computes nothing from them.
    "restore_fpregs_from_fpstate", "save_fpregs_to_fpstate",
    # A new task's first turn on a run queue: see WAKES.
    "wake_up_new_task",
})  # fmt: skip
"""Functions that are left out: they return 0 at once, and the verdict names them."""

WAKES = frozenset({"try_to_wake_up"})
"""Where another task is made ready to run. None runs here, and the run queues of a live kernel are
never read in one piece, so all that happens is the answer: whether the task was asleep so
(kernel/sched/core.c). The verdict names it as left out."""

YIELDS = frozenset({
    "__cond_resched", "_cond_resched", "preempt_schedule", "preempt_schedule_notrace",
    "preempt_schedule_common",
})
"""Where a task lets others run and waits for nothing: none runs here, so the code goes on."""

CLOCKS = frozenset({
    "read_tsc", "kvm_clock_get_cycles", "read_hpet", "acpi_pm_read", "read_hv_clock_tsc_cs",
    "read_hv_clock_msr_cs", "xen_clocksource_get_cycles",
})  # fmt: skip
"""Clock sources: they give the cycle of the last tick, so that a run always sees the same time."""

_TIMES = frozenset({
    "jiffies", "jiffies_64", "tk_core", "timekeeper_data", "shadow_timekeeper", "tk_fast_mono",
    "tk_fast_raw", "mg_floor",
})  # fmt: skip


class _Symbol(Protocol):
    @property
    def name(self) -> str: ...


def holds_time(symbol: _Symbol | None) -> bool:
    """Whether a variable is the time that the kernel keeps, which moves with every tick.

    Some of it moves but once a second (kernel/time/timekeeping.c), so looking twice may not tell.
    """
    return symbol is not None and symbol.name in _TIMES
