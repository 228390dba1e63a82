/* Removes a directory of a tmpfs that still holds a file. */
#include "incident.h"

int main(void)
{
	world("size=1m");
	NEED(mkdir("full", 0700));
	make_file("full/crumb", 0600, "x");
	if (rmdir("full") < 0)
		return failed("rmdir");
	return 0;
}
