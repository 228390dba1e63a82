/* Clones a thread that does not share signal handlers. */
#include "incident.h"
#include <linux/sched.h>

int main(void)
{
	struct clone_args args = {.flags = CLONE_THREAD | CLONE_VM};
	long pid = syscall(SYS_clone3, &args, sizeof args);

	if (pid < 0)
		return failed("clone3");
	return 0;
}
