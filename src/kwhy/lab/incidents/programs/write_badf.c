/* Writes to a descriptor that was closed before. */
#include "incident.h"

int main(void)
{
	int fd;

	world("size=1m");
	fd = make_file("log", 0600, "first\n");
	NEED(close(fd));
	if (write(fd, "second\n", 7) < 0)
		return failed("write");
	return 0;
}
