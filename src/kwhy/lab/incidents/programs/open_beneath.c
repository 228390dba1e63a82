/* Opens a path that leads out of the directory that it has to stay in. */
#include "incident.h"

#include <linux/openat2.h>

int main(void)
{
	struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_BENEATH};
	int dir;

	world("size=1m");
	NEED(dir = open("/tmp", O_RDONLY | O_DIRECTORY));
	syscall(SYS_openat2, dir, "../etc/passwd", &how, sizeof(how));
	return failed("../etc/passwd");
}
