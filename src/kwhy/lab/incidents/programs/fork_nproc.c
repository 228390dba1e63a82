/* Forks as nobody with no process left in RLIMIT_NPROC. */
#include "incident.h"

int main(void)
{
	pid_t child;

	limit(RLIMIT_NPROC, 0);
	become_nobody();
	child = fork();
	if (child < 0)
		return failed("fork");
	return 0;
}
