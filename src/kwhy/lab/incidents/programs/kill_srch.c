/* Signals a process that is gone. */
#include "incident.h"

int main(void)
{
	pid_t child;

	NEED(child = fork());
	if (child == 0)
		_exit(0);
	NEED(waitpid(child, NULL, 0));
	if (kill(child, SIGTERM) < 0)
		return failed("kill");
	return 0;
}
