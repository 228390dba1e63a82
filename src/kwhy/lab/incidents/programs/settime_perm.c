/* Nobody sets the clock. */
#include "incident.h"
#include <sys/time.h>

int main(void)
{
	struct timeval now = {1000000000, 0};

	become_nobody();
	if (syscall(SYS_settimeofday, &now, NULL) < 0)
		return failed("settimeofday");
	return 0;
}
