/* Makes directories until a tmpfs has no inodes left. */
#include "incident.h"

int main(void)
{
	char name[] = "a";

	world("nr_inodes=5");
	for (;; name[0]++)
		if (mkdir(name, 0700) < 0)
			return failed("mkdir");
}
