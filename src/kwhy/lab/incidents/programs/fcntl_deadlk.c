/* Two processes wait for each other's record locks; one of them, whichever is second, is refused. */
#include "incident.h"

static int lock(int fd, off_t byte)
{
	struct flock range = {.l_type = F_WRLCK, .l_start = byte, .l_len = 1};

	return fcntl(fd, F_SETLKW, &range);
}

int main(void)
{
	int fd, ready[2], go[2];
	pid_t child;
	char byte = 0;

	world("size=1m");
	fd = make_file("table", 0600, "ab");
	NEED(pipe(ready));
	NEED(pipe(go));
	NEED(child = fork());
	NEED(lock(fd, child ? 0 : 1));
	NEED(write(child ? go[1] : ready[1], &byte, 1));
	NEED(read(child ? ready[0] : go[0], &byte, 1));
	if (lock(fd, child ? 1 : 0) < 0)
		return failed("fcntl");
	return child ? exit_like(child) : 0;
}
