// SPDX-License-Identifier: MIT
/*
 * Ways to burn a processor inside the kernel, each in the thread that writes its name to
 * /proc/kwhy_spin. Writing "release" repairs what keeps them going; "slow" ends by itself.
 */
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/sched/signal.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>

struct spin_item {
	struct list_head node;
	long value;
};

struct spin_queue {
	unsigned long read;
	unsigned long commit;
	unsigned long entries;
};

struct spin_state {
	int done;
	unsigned long pending;
	unsigned long taken;
	unsigned long todo;
	spinlock_t lock;
	struct list_head items;
	struct spin_item item[4];
};

static struct spin_state spin_state;
static struct spin_queue spin_queue;

static __attribute__((noipa)) unsigned long spin_plain(struct spin_state *state)
{
	unsigned long rounds = 0;

	while (!READ_ONCE(state->done))
		rounds++;
	return rounds;
}

static __attribute__((noipa)) unsigned long spin_resched(struct spin_state *state)
{
	unsigned long looks = 0;

	while (READ_ONCE(state->taken) < READ_ONCE(state->pending)) {
		looks++;
		cond_resched();
	}
	return looks;
}

/* The two disagree about what is in the queue, and neither can be interrupted. */
static __attribute__((noipa)) bool spin_queue_empty(struct spin_queue *queue)
{
	unsigned long flags;
	bool empty;

	local_irq_save(flags);
	udelay(20);
	empty = queue->read == queue->commit;
	local_irq_restore(flags);
	return empty;
}

static __attribute__((noipa)) struct spin_queue *spin_queue_peek(struct spin_queue *queue)
{
	struct spin_queue *found;
	unsigned long flags;

	local_irq_save(flags);
	udelay(20);
	found = READ_ONCE(queue->entries) ? queue : NULL;
	local_irq_restore(flags);
	return found;
}

static __attribute__((noipa)) unsigned long spin_masked(struct spin_queue *queue)
{
	unsigned long seen = 0;

	while (!spin_queue_empty(queue)) {
		struct spin_queue *found = spin_queue_peek(queue);

		if (found) {
			found->read++;
			seen++;
		}
	}
	return seen;
}

/* Takes the lock and dies with it. */
static int spin_holder(void *data)
{
	struct spin_state *state = data;

	spin_lock(&state->lock);
	preempt_enable();
	return 0;
}

static __attribute__((noipa)) void spin_lock_dead(struct spin_state *state)
{
	spin_lock(&state->lock);
	state->taken++;
	spin_unlock(&state->lock);
}

static __attribute__((noipa)) long spin_circle(struct list_head *items)
{
	struct spin_item *item;
	long sum = 0;

	list_for_each_entry(item, items, node)
		sum += READ_ONCE(item->value);
	return sum;
}

static __attribute__((noipa)) long spin_slow_step(struct spin_state *state, unsigned long number)
{
	udelay(50);
	return READ_ONCE(state->done) + number;
}

static __attribute__((noipa)) long spin_slow(struct spin_state *state, unsigned long todo)
{
	unsigned long number;
	long sum = 0;

	for (number = 0; number < todo; number++) {
		sum += spin_slow_step(state, number);
		if (fatal_signal_pending(current))
			return -EINTR;
	}
	return sum;
}

static void spin_prepare(struct spin_state *state)
{
	int i;

	state->done = 0;
	state->taken = 0;
	state->pending = 3;
	spin_queue.read = 0xff0;
	spin_queue.commit = 0;
	spin_queue.entries = 0;
	INIT_LIST_HEAD(&state->items);
	for (i = 0; i < ARRAY_SIZE(state->item); i++) {
		state->item[i].value = i;
		list_add_tail(&state->item[i].node, &state->items);
	}
	state->item[2].node.next = &state->item[1].node;
}

static void spin_repair(struct spin_state *state)
{
	WRITE_ONCE(state->done, 1);
	WRITE_ONCE(state->taken, state->pending);
	WRITE_ONCE(spin_queue.commit, 0xff0);
	if (spin_is_locked(&state->lock))
		arch_spin_unlock(&state->lock.rlock.raw_lock);
	WRITE_ONCE(state->item[2].node.next, &state->item[3].node);
}

static ssize_t spin_write(struct file *file, const char __user *buffer, size_t size, loff_t *at)
{
	struct spin_state *state = &spin_state;
	char name[16] = "";

	if (copy_from_user(name, buffer, min(size, sizeof(name) - 1)))
		return -EFAULT;
	strim(name);
	if (!strcmp(name, "release")) {
		spin_repair(state);
		return size;
	}
	spin_prepare(state);
	if (!strcmp(name, "plain"))
		spin_plain(state);
	else if (!strcmp(name, "resched"))
		spin_resched(state);
	else if (!strcmp(name, "masked"))
		spin_masked(&spin_queue);
	else if (!strcmp(name, "circle"))
		spin_circle(&state->items);
	else if (!strcmp(name, "slow"))
		spin_slow(state, state->todo);
	else if (!strcmp(name, "lock")) {
		struct task_struct *holder = kthread_run(spin_holder, state, "spin_holder");

		if (IS_ERR(holder))
			return PTR_ERR(holder);
		while (!spin_is_locked(&state->lock))
			msleep(1);
		spin_lock_dead(state);
	} else
		return -EINVAL;
	return size;
}

static const struct proc_ops spin_operations = {
	.proc_write = spin_write,
};

static int __init spin_init(void)
{
	spin_lock_init(&spin_state.lock);
	spin_state.todo = 20000000;
	return proc_create("kwhy_spin", 0200, NULL, &spin_operations) ? 0 : -ENOMEM;
}

static void __exit spin_exit(void)
{
	remove_proc_entry("kwhy_spin", NULL);
}

module_init(spin_init);
module_exit(spin_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("Threads that spin inside the kernel in known ways");
