/* Makes a directory under a read-only bind mount of a writable file system. */
#include "incident.h"

int main(void)
{
	world("size=1m");
	NEED(mkdir("frozen", 0700));
	NEED(mount("frozen", "frozen", NULL, MS_BIND, NULL));
	NEED(mount(NULL, "frozen", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL));
	if (mkdir("frozen/new", 0700) < 0)
		return failed("mkdir");
	return 0;
}
