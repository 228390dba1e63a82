// SPDX-License-Identifier: MIT
/*
 * A queue on the kernel's kfifo, with a mistake: "empty" compares where the indices point to, not
 * the indices. What is full by wrapping around then looks empty, and "rewind", which an empty queue
 * may do, throws away what is in it.
 */
#include <linux/kfifo.h>
#include <linux/module.h>

struct kwhy_queue {
	struct __kfifo fifo;
	u32 slots[4];
	unsigned long put;
	unsigned long got;
};

struct kwhy_queue kwhy_queue;

__attribute__((noipa)) bool kwhy_queue_empty(struct kwhy_queue *queue)
{
	unsigned int mask = queue->fifo.mask;

	return (queue->fifo.in & mask) == (queue->fifo.out & mask);
}

__attribute__((noipa)) bool kwhy_queue_put(struct kwhy_queue *queue, u32 value)
{
	bool done = __kfifo_in(&queue->fifo, &value, 1) == 1;

	queue->put += done;
	return done;
}

__attribute__((noipa)) bool kwhy_queue_get(struct kwhy_queue *queue)
{
	u32 value;
	bool done = __kfifo_out(&queue->fifo, &value, 1) == 1;

	queue->got += done;
	return done;
}

__attribute__((noipa)) void kwhy_queue_rewind(struct kwhy_queue *queue)
{
	if (kwhy_queue_empty(queue))
		queue->fifo.in = queue->fifo.out = 0;
}

static int __init fifo_init(void)
{
	return __kfifo_init(&kwhy_queue.fifo, kwhy_queue.slots, sizeof(kwhy_queue.slots),
			    sizeof(kwhy_queue.slots[0]));
}

static void __exit fifo_exit(void)
{
}

module_init(fifo_init);
module_exit(fifo_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("A queue that loses what is in it");
