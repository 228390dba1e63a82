/* Opens a directory for writing. */
#include "incident.h"

int main(void)
{
	world("size=1m");
	NEED(mkdir("dir", 0700));
	if (open("dir", O_WRONLY) < 0)
		return failed("dir");
	return 0;
}
