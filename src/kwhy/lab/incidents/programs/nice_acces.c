/* Raises its own priority as nobody. */
#include "incident.h"

int main(void)
{
	become_nobody();
	if (setpriority(PRIO_PROCESS, 0, -5) < 0)
		return failed("setpriority");
	return 0;
}
