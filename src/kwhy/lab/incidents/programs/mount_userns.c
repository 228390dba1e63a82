/* Mounts, from inside a user namespace, a file system that only the initial one may mount. */
#include "incident.h"

int main(void)
{
	world("size=1m");
	NEED(unshare(CLONE_NEWUSER | CLONE_NEWNS));
	if (mount("none", "/tmp", "debugfs", 0, NULL) < 0)
		return failed("mount");
	return 0;
}
