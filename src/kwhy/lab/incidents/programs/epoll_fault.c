/* Passes an event structure from an address where nothing is mapped. */
#include "incident.h"
#include <sys/epoll.h>

int main(void)
{
	int set, ends[2];

	NEED(set = epoll_create1(0));
	NEED(pipe(ends));
	if (epoll_ctl(set, EPOLL_CTL_ADD, ends[0], (struct epoll_event *)0x1000) < 0)
		return failed("epoll_ctl");
	return 0;
}
