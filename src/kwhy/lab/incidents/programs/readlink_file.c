/* Asks where a plain file points to. */
#include "incident.h"

int main(void)
{
	char where[64];

	world("size=1m");
	make_file("plain", 0600, "x");
	if (readlink("plain", where, sizeof(where)) < 0)
		return failed("readlink");
	return 0;
}
