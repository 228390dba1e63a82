/* A process with two threads makes itself a user namespace. */
#include "incident.h"
#include <pthread.h>

static void *idle(void *unused)
{
	pause();
	return unused;
}

int main(void)
{
	pthread_t thread;

	NEED(-pthread_create(&thread, NULL, idle, NULL));
	if (unshare(CLONE_NEWUSER) < 0)
		return failed("unshare");
	return 0;
}
