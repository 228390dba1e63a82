/* Adds an epoll set to itself. */
#include "incident.h"
#include <sys/epoll.h>

int main(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	int set;

	NEED(set = epoll_create1(0));
	if (epoll_ctl(set, EPOLL_CTL_ADD, set, &event) < 0)
		return failed("epoll_ctl");
	return 0;
}
