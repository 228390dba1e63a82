/* Sets the foreground process group of a terminal from an address where nothing is mapped. */
#include "incident.h"
#include <sys/ioctl.h>

int main(void)
{
	int ptmx, tty;
	pid_t child;

	world("size=1m");
	NEED(mount("devpts", "/tmp", "devpts", 0, "newinstance,ptmxmode=0666"));
	NEED(ptmx = open("/tmp/ptmx", O_RDWR | O_NOCTTY));
	NEED(ioctl(ptmx, TIOCSPTLCK, &(int){0}));
	NEED(tty = ioctl(ptmx, TIOCGPTPEER, O_RDWR | O_NOCTTY));
	NEED(child = fork());
	if (child)
		return exit_like(child);
	NEED(setsid());
	NEED(ioctl(tty, TIOCSCTTY, 0));
	if (ioctl(tty, TIOCSPGRP, (pid_t *)0x1000) < 0)
		return failed("TIOCSPGRP");
	return 0;
}
