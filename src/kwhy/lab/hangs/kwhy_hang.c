// SPDX-License-Identifier: MIT
/*
 * Takes kernel locks on request, in the context of whoever asks, and keeps them.
 *
 * A process writes one request to /dev/kwhy_hang: "take KIND NUMBER" or "give KIND NUMBER". What it
 * has taken it holds until it gives it back, also beyond its own end. For the kind "inode" and the
 * two operations "truncate" and "splice" NUMBER is an open file descriptor. Those two take the lock
 * of an inode and a second, private one of the same inode in opposite order, each waiting for the
 * other to have taken its first: the inversion of a file system whose write path and splice path
 * disagree.
 *
 * "take flush N" has a worker lock mutex N and waits for that work to be done, "take drain N" waits for
 * the whole workqueue of number N instead. "take forget N" empties mutex N and wakes nobody. "take reader N" stays for ever in a read-side critical
 * section of RCU, which it gives the processor away in, and "take grace N" waits for a grace period.
 */
#include <linux/completion.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu-rwsem.h>
#include <linux/rcupdate.h>
#include <linux/rtmutex.h>
#include <linux/rwsem.h>
#include <linux/sched.h>
#include <linux/semaphore.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#define COUNT 16

static struct mutex mutexes[COUNT];
static struct rw_semaphore rwsems[COUNT];
static struct semaphore semaphores[COUNT];
static struct rt_mutex rt_mutexes[COUNT];
static struct completion completions[COUNT];
static struct percpu_rw_semaphore percpu_rwsems[COUNT];

static struct work_struct works[COUNT];
static struct workqueue_struct *queues[COUNT];

static noinline void hang_work(struct work_struct *work)
{
	unsigned int n = work - works;

	mutex_lock(&mutexes[n]);
	mutex_unlock(&mutexes[n]);
}

static noinline void hang_flush(unsigned int n, bool all)
{
	queue_work(queues[n], &works[n]);
	if (all)
		flush_workqueue(queues[n]);
	else
		flush_work(&works[n]);
}

/* What is left of mutex_unlock() when its wake-up is lost; the low bits say that somebody waits. */
static noinline void hang_forget(struct mutex *lock)
{
	atomic_long_and(7, &lock->owner);
}

static noinline void hang_reader(void)
{
	rcu_read_lock();
	for (;;)
		cond_resched();
}

/* The second lock of an inode, as a file system has one in its own part of the inode. */
struct hang_inode {
	struct inode *inode;
	struct rw_semaphore iolock;
	atomic_t inside;
	wait_queue_head_t both;
};

static struct hang_inode hang_inodes[COUNT];
static DEFINE_MUTEX(hang_inodes_lock);

static struct hang_inode *hang_inode_of(struct inode *inode)
{
	struct hang_inode *found = NULL;
	int i;

	mutex_lock(&hang_inodes_lock);
	for (i = 0; i < COUNT && !found; i++)
		if (!hang_inodes[i].inode || hang_inodes[i].inode == inode)
			found = &hang_inodes[i];
	if (found && !found->inode) {
		ihold(inode);
		found->inode = inode;
	}
	mutex_unlock(&hang_inodes_lock);
	return found;
}

static void hang_meet(struct hang_inode *hang)
{
	atomic_inc(&hang->inside);
	wake_up_all(&hang->both);
	wait_event(hang->both, atomic_read(&hang->inside) >= 2);
}

static noinline int hang_truncate(struct hang_inode *hang, struct inode *inode)
{
	inode_lock(inode);
	hang_meet(hang);
	down_write(&hang->iolock);
	up_write(&hang->iolock);
	inode_unlock(inode);
	return 0;
}

static noinline int hang_splice_write(struct hang_inode *hang, struct inode *inode)
{
	down_write(&hang->iolock);
	hang_meet(hang);
	inode_lock(inode);
	inode_unlock(inode);
	up_write(&hang->iolock);
	return 0;
}

static noinline int hang_on_file(const char *kind, int fd, bool take)
{
	struct file *file = fget(fd);
	struct hang_inode *hang;
	struct inode *inode;
	int ret = 0;

	if (!file)
		return -EBADF;
	inode = file_inode(file);
	hang = hang_inode_of(inode);
	if (!hang)
		ret = -ENOSPC;
	else if (!strcmp(kind, "truncate"))
		ret = hang_truncate(hang, inode);
	else if (!strcmp(kind, "splice"))
		ret = hang_splice_write(hang, inode);
	else if (take)
		inode_lock(inode);
	else
		inode_unlock(inode);
	fput(file);
	return ret;
}

static noinline int hang_take(const char *kind, unsigned int n)
{
	if (!strcmp(kind, "mutex"))
		mutex_lock(&mutexes[n]);
	else if (!strcmp(kind, "read"))
		down_read(&rwsems[n]);
	else if (!strcmp(kind, "write"))
		down_write(&rwsems[n]);
	else if (!strcmp(kind, "semaphore"))
		down(&semaphores[n]);
	else if (!strcmp(kind, "rtmutex"))
		rt_mutex_lock(&rt_mutexes[n]);
	else if (!strcmp(kind, "completion"))
		wait_for_completion(&completions[n]);
	else if (!strcmp(kind, "percpu-read"))
		percpu_down_read(&percpu_rwsems[n]);
	else if (!strcmp(kind, "percpu-write"))
		percpu_down_write(&percpu_rwsems[n]);
	else if (!strcmp(kind, "flush") || !strcmp(kind, "drain"))
		hang_flush(n, kind[0] == 'd');
	else if (!strcmp(kind, "forget"))
		hang_forget(&mutexes[n]);
	else if (!strcmp(kind, "reader"))
		hang_reader();
	else if (!strcmp(kind, "grace"))
		synchronize_rcu();
	else
		return -EINVAL;
	return 0;
}

static noinline int hang_give(const char *kind, unsigned int n)
{
	if (!strcmp(kind, "mutex"))
		mutex_unlock(&mutexes[n]);
	else if (!strcmp(kind, "read"))
		up_read(&rwsems[n]);
	else if (!strcmp(kind, "write"))
		up_write(&rwsems[n]);
	else if (!strcmp(kind, "semaphore"))
		up(&semaphores[n]);
	else if (!strcmp(kind, "rtmutex"))
		rt_mutex_unlock(&rt_mutexes[n]);
	else if (!strcmp(kind, "completion"))
		complete(&completions[n]);
	else if (!strcmp(kind, "percpu-read"))
		percpu_up_read(&percpu_rwsems[n]);
	else if (!strcmp(kind, "percpu-write"))
		percpu_up_write(&percpu_rwsems[n]);
	else
		return -EINVAL;
	return 0;
}

static ssize_t hang_write(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	char text[64], verb[8], kind[16];
	unsigned int n;
	bool take;
	int ret;

	if (size >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, from, size))
		return -EFAULT;
	text[size] = 0;
	if (sscanf(text, "%7s %15s %u", verb, kind, &n) != 3)
		return -EINVAL;
	take = !strcmp(verb, "take");
	if (!strcmp(kind, "inode") || !strcmp(kind, "truncate") || !strcmp(kind, "splice"))
		ret = hang_on_file(kind, n, take);
	else if (n >= COUNT)
		ret = -EINVAL;
	else
		ret = take ? hang_take(kind, n) : hang_give(kind, n);
	return ret ? ret : size;
}

static const struct file_operations hang_operations = {
	.owner = THIS_MODULE,
	.write = hang_write,
};

static struct miscdevice hang_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kwhy_hang",
	.fops = &hang_operations,
};

static int __init hang_init(void)
{
	int i;

	for (i = 0; i < COUNT; i++) {
		mutex_init(&mutexes[i]);
		init_rwsem(&rwsems[i]);
		sema_init(&semaphores[i], 1);
		rt_mutex_init(&rt_mutexes[i]);
		init_completion(&completions[i]);
		if (percpu_init_rwsem(&percpu_rwsems[i]))
			return -ENOMEM;
		INIT_WORK(&works[i], hang_work);
		queues[i] = alloc_workqueue("kwhy_hang%d", 0, 0, i);
		if (!queues[i])
			return -ENOMEM;
		init_rwsem(&hang_inodes[i].iolock);
		init_waitqueue_head(&hang_inodes[i].both);
	}
	return misc_register(&hang_device);
}

module_init(hang_init);
MODULE_DESCRIPTION("takes locks on request, to see who waits for whom");
MODULE_LICENSE("Dual MIT/GPL");
