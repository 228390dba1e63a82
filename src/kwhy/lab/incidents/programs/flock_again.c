/* Asks, without waiting, for a file lock that another open file holds. */
#include "incident.h"
#include <sys/file.h>

int main(void)
{
	int first, second;

	world("size=1m");
	first = make_file("lock", 0600, "");
	NEED(flock(first, LOCK_EX));
	NEED(second = open("lock", O_RDWR));
	if (flock(second, LOCK_EX | LOCK_NB) < 0)
		return failed("flock");
	return 0;
}
