/* Fails often and harmlessly, then once in earnest: unlinks another's file in a sticky directory. */
#include "incident.h"
#include <sys/ioctl.h>

int main(void)
{
	char name[32];
	int i, modes[64];

	world("mode=1777");
	make_file("roots", 0666, "x");
	become_nobody();
	for (i = 0; i < 40; i++) {
		snprintf(name, sizeof name, "/tmp/config.%d", i);
		if (access(name, R_OK) == 0 || readlink("/tmp", name, sizeof name) > 0)
			return 99;
	}
	if (ioctl(1, 0xdead, modes) == 0)
		return 99;
	if (unlink("/tmp/roots") < 0)
		return failed("roots");
	return 0;
}
