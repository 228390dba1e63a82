// SPDX-License-Identifier: MIT
/*
 * More ways to burn a processor inside the kernel, in the thread that writes a way's name to
 * /proc/kwhy_wait: some wait for what never comes, some for what comes late. "release" ends all.
 */
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/rculist.h>
#include <linux/sched.h>
#include <linux/seqlock.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timex.h>
#include <linux/uaccess.h>

#define SECONDS 600

struct wait_item {
	struct list_head node;
	int again;
};

struct wait_state {
	int done;
	unsigned long count;
	unsigned long deadline;
	ktime_t until;
	u64 cycles;
	unsigned long calls;
	int blocked;
	seqcount_t sequence;
	unsigned long flags;
	u32 status;
	rwlock_t guard;
	struct list_head items;
	struct wait_item item[3];
	bool (*more)(struct wait_state *state);
};

static struct wait_state wait_state;

/* -- what never comes ------------------------------------------------------------------------- */

static __attribute__((noipa)) int wait_try(struct wait_state *state)
{
	state->calls++;
	if (READ_ONCE(state->blocked))
		return -EAGAIN;
	return 0;
}

static __attribute__((noipa)) int wait_eagain(struct wait_state *state)
{
	int err;

	do {
		err = wait_try(state);
		cpu_relax();
	} while (err == -EAGAIN);
	return err;
}

static __attribute__((noipa)) unsigned long wait_sequence(struct wait_state *state)
{
	unsigned int seq;
	unsigned long value;

	do {
		seq = read_seqcount_begin(&state->sequence);
		value = READ_ONCE(state->count);
	} while (read_seqcount_retry(&state->sequence, seq));
	return value;
}

static __attribute__((noipa)) unsigned long wait_exchange(struct wait_state *state)
{
	unsigned long old, new;

	do {
		old = READ_ONCE(state->flags) & ~1UL;
		new = old + 2;
	} while (cmpxchg(&state->flags, old, new) != old);
	return new;
}

static __attribute__((noipa)) unsigned long wait_nested(struct wait_state *state)
{
	unsigned long sum = 0;
	int i;

	while (!READ_ONCE(state->done)) {
		for (i = 0; i < 200; i++)
			sum += READ_ONCE(state->count) ^ i;
	}
	return sum;
}

static __attribute__((noipa)) u32 wait_ready(struct wait_state *state)
{
	u32 status;

	do {
		status = readl((void __iomem *)&state->status);
		ndelay(100);
	} while (!(status & 0x80));
	return status;
}

static __attribute__((noipa)) unsigned long wait_behind(struct wait_state *state)
{
	unsigned long rounds = 0;

	while (!READ_ONCE(state->done))
		rounds++;
	return rounds;
}

static __attribute__((noipa)) unsigned long wait_tail(struct wait_state *state)
{
	WRITE_ONCE(state->calls, 0);
	return wait_behind(state);
}

static __attribute__((noipa)) bool wait_more(struct wait_state *state)
{
	return READ_ONCE(state->blocked) != 0;
}

static __attribute__((noipa)) unsigned long wait_indirect(struct wait_state *state)
{
	unsigned long rounds = 0;

	while (state->more(state))
		rounds++;
	return rounds;
}

static __attribute__((noipa)) long wait_moving(struct wait_state *state)
{
	struct wait_item *item;
	long seen = 0;

	rcu_read_lock();
again:
	list_for_each_entry_rcu(item, &state->items, node) {
		seen++;
		if (READ_ONCE(item->again)) {
			list_move_tail(&item->node, &state->items);
			goto again;
		}
	}
	rcu_read_unlock();
	return seen;
}

static __attribute__((noipa)) void wait_write_lock(struct wait_state *state)
{
	write_lock(&state->guard);
	state->count++;
	write_unlock(&state->guard);
}

static __attribute__((noipa)) unsigned long wait_masked(struct wait_state *state)
{
	unsigned long flags, rounds = 0;

	local_irq_save(flags);
	while (!READ_ONCE(state->done))
		rounds++;
	local_irq_restore(flags);
	return rounds;
}

static __attribute__((noipa)) int wait_polling(void *data)
{
	struct wait_state *state = data;

	while (!READ_ONCE(state->done))
		cond_resched();
	return 0;
}

/* -- what comes late -------------------------------------------------------------------------- */

static __attribute__((noipa)) bool wait_expired(struct wait_state *state)
{
	return READ_ONCE(state->done) || time_after(jiffies, state->deadline);
}

static __attribute__((noipa)) void wait_timeout(struct wait_state *state)
{
	while (!wait_expired(state))
		cpu_relax();
}

static __attribute__((noipa)) void wait_jiffies(struct wait_state *state)
{
	while (time_before(jiffies, state->deadline) && !READ_ONCE(state->done))
		cpu_relax();
}

static __attribute__((noipa)) bool wait_too_early(struct wait_state *state)
{
	return ktime_before(ktime_get(), state->until) && !READ_ONCE(state->done);
}

static __attribute__((noipa)) void wait_clock(struct wait_state *state)
{
	while (wait_too_early(state))
		cpu_relax();
}

static __attribute__((noipa)) void wait_cycles(struct wait_state *state)
{
	while (get_cycles() < state->cycles && !READ_ONCE(state->done))
		cpu_relax();
}

static __attribute__((noipa)) bool wait_take(struct wait_state *state)
{
	if (!state->count || READ_ONCE(state->done))
		return false;
	state->count--;
	return true;
}

static __attribute__((noipa)) void wait_drain(struct wait_state *state)
{
	while (wait_take(state))
		udelay(50);
}

static __attribute__((noipa)) bool wait_step(struct wait_state *state)
{
	return ++state->calls < 200000000 && !READ_ONCE(state->done);
}

static __attribute__((noipa)) void wait_steps(struct wait_state *state)
{
	while (wait_step(state))
		udelay(30);
}

/* The way out asks for a flag that a callee raises, late. */
static __attribute__((noipa)) void wait_count(struct wait_state *state)
{
	if (++state->calls > 200000000000UL)
		WRITE_ONCE(state->done, 1);
}

static __attribute__((noipa)) void wait_raised(struct wait_state *state)
{
	while (!READ_ONCE(state->done))
		wait_count(state);
}

/* The counter never equals its bound. */
static __attribute__((noipa)) unsigned long wait_odd(struct wait_state *state, u64 bound)
{
	unsigned long sum = 0;
	u64 i;

	for (i = 0; i != bound; i += 2) {
		if (READ_ONCE(state->done))
			break;
		sum ^= READ_ONCE(state->count) + i;
	}
	return sum;
}

static __attribute__((noipa)) unsigned long wait_inner(struct wait_state *state)
{
	unsigned long sum = 0;
	unsigned long i;

	while (!READ_ONCE(state->done)) {
		for (i = 0; i < 400000000UL && !READ_ONCE(state->done); i++)
			sum += READ_ONCE(state->count) ^ i;
	}
	return sum;
}

/* ---------------------------------------------------------------------------------------------- */

static void wait_prepare(struct wait_state *state)
{
	int i;

	state->done = 0;
	state->count = 100000000;
	state->deadline = jiffies + SECONDS * HZ;
	state->until = ktime_add_ms(ktime_get(), SECONDS * 1000);
	state->cycles = get_cycles() + 2000000000000ULL;
	state->calls = 0;
	state->blocked = 1;
	state->flags = 5;
	state->status = 0x12;
	state->more = wait_more;
	INIT_LIST_HEAD(&state->items);
	for (i = 0; i < ARRAY_SIZE(state->item); i++) {
		state->item[i].again = 1;
		list_add_tail_rcu(&state->item[i].node, &state->items);
	}
}

static void wait_repair(struct wait_state *state)
{
	int i;

	WRITE_ONCE(state->done, 1);
	WRITE_ONCE(state->blocked, 0);
	WRITE_ONCE(state->flags, 4);
	WRITE_ONCE(state->status, 0x92);
	if (READ_ONCE(state->sequence.sequence) & 1)
		WRITE_ONCE(state->sequence.sequence, state->sequence.sequence + 1);
	for (i = 0; i < ARRAY_SIZE(state->item); i++)
		WRITE_ONCE(state->item[i].again, 0);
}

static ssize_t wait_write(struct file *file, const char __user *buffer, size_t size, loff_t *at)
{
	struct wait_state *state = &wait_state;
	char name[16] = "";

	if (copy_from_user(name, buffer, min(size, sizeof(name) - 1)))
		return -EFAULT;
	strim(name);
	if (!strcmp(name, "release")) {
		wait_repair(state);
		/* Not read_unlock(): preemption is the business of the thread that took it. */
		if (state->guard.raw_lock.wlocked == 0 && atomic_read(&state->guard.raw_lock.cnts))
			arch_read_unlock(&state->guard.raw_lock);
		return size;
	}
	wait_prepare(state);
	if (!strcmp(name, "eagain"))
		wait_eagain(state);
	else if (!strcmp(name, "sequence")) {
		WRITE_ONCE(state->sequence.sequence, state->sequence.sequence | 1);
		wait_sequence(state);
	} else if (!strcmp(name, "exchange"))
		wait_exchange(state);
	else if (!strcmp(name, "nested"))
		wait_nested(state);
	else if (!strcmp(name, "ready"))
		wait_ready(state);
	else if (!strcmp(name, "tail"))
		wait_tail(state);
	else if (!strcmp(name, "indirect"))
		wait_indirect(state);
	else if (!strcmp(name, "moving"))
		wait_moving(state);
	else if (!strcmp(name, "guard")) {
		read_lock(&state->guard);
		preempt_enable();
		wait_write_lock(state);
	} else if (!strcmp(name, "masked"))
		wait_masked(state);
	else if (!strcmp(name, "polling")) {
		struct task_struct *task = kthread_create(wait_polling, state, "wait_polling");

		if (IS_ERR(task))
			return PTR_ERR(task);
		kthread_bind(task, 1);
		wake_up_process(task);
	} else if (!strcmp(name, "timeout"))
		wait_timeout(state);
	else if (!strcmp(name, "jiffies"))
		wait_jiffies(state);
	else if (!strcmp(name, "clock"))
		wait_clock(state);
	else if (!strcmp(name, "cycles"))
		wait_cycles(state);
	else if (!strcmp(name, "drain"))
		wait_drain(state);
	else if (!strcmp(name, "steps"))
		wait_steps(state);
	else if (!strcmp(name, "raised"))
		wait_raised(state);
	else if (!strcmp(name, "odd"))
		wait_odd(state, 1000000000001ULL);
	else if (!strcmp(name, "inner"))
		wait_inner(state);
	else
		return -EINVAL;
	return size;
}

static const struct proc_ops wait_operations = {
	.proc_write = wait_write,
};

static int __init wait_init(void)
{
	rwlock_init(&wait_state.guard);
	seqcount_init(&wait_state.sequence);
	return proc_create("kwhy_wait", 0200, NULL, &wait_operations) ? 0 : -ENOMEM;
}

static void __exit wait_exit(void)
{
	remove_proc_entry("kwhy_wait", NULL);
}

module_init(wait_init);
module_exit(wait_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("Threads that wait by spinning for what never comes, or comes late");
