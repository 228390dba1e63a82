/* Waits for a process that is not its child. */
#include "incident.h"

int main(void)
{
	pid_t child;

	NEED(child = fork());
	if (child == 0)
		_exit(0);
	NEED(waitpid(child, NULL, 0));
	if (waitpid(child, NULL, 0) < 0)
		return failed("waitpid");
	return 0;
}
