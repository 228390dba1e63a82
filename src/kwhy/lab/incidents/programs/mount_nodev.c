/* Mounts a file system of a type that does not exist. */
#include "incident.h"

int main(void)
{
	world("size=1m");
	if (mount("none", "/tmp", "nosuchfs", 0, NULL) < 0)
		return failed("mount");
	return 0;
}
