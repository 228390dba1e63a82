/* Adds a regular file, which cannot be polled, to an epoll set. */
#include "incident.h"
#include <sys/epoll.h>

int main(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	int set, fd;

	world("size=1m");
	fd = make_file("regular", 0600, "x");
	NEED(set = epoll_create1(0));
	if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) < 0)
		return failed("epoll_ctl");
	return 0;
}
