/* Maps two ranges of users of which one lies in the other. */
#include "incident.h"

int main(void)
{
	static const char ranges[] = "0 0 10\n0 5 1\n";
	int fd;

	NEED(unshare(CLONE_NEWUSER));
	NEED(fd = open("/proc/self/uid_map", O_WRONLY));
	if (write(fd, ranges, sizeof(ranges) - 1) < 0)
		return failed("uid_map");
	return 0;
}
