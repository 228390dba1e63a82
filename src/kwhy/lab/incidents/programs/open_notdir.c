/* Walks through a regular file as if it were a directory. */
#include "incident.h"

int main(void)
{
	world("size=1m");
	make_file("file", 0600, "x");
	if (open("file/below", O_RDONLY) < 0)
		return failed("file/below");
	return 0;
}
