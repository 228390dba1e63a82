/* Writes past RLIMIT_FSIZE, SIGXFSZ ignored. */
#include "incident.h"

int main(void)
{
	int fd;

	world("size=1m");
	fd = make_file("big", 0600, "12345678");
	signal(SIGXFSZ, SIG_IGN);
	limit(RLIMIT_FSIZE, 8);
	if (write(fd, "9", 1) < 0)
		return failed("write");
	return 0;
}
