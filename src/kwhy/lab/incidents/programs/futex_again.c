/* A thread waits on a futex whose value has changed already; the main thread reports it. */
#include "incident.h"
#include <linux/futex.h>
#include <pthread.h>

static int word = 7;

static void *waiter(void *unused)
{
	if (syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 6, NULL, NULL, 0) < 0)
		return (void *)(long)failed("futex");
	return unused;
}

int main(void)
{
	pthread_t thread;
	void *result;

	NEED(-pthread_create(&thread, NULL, waiter, NULL));
	NEED(-pthread_join(thread, &result));
	return (int)(long)result;
}
