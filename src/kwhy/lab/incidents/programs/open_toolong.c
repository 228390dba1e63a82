/* Creates a file with a name that is one byte too long. */
#include "incident.h"

int main(void)
{
	char name[257];

	world("size=1m");
	memset(name, 'n', 256);
	name[256] = 0;
	if (open(name, O_WRONLY | O_CREAT, 0600) < 0)
		return failed("open");
	return 0;
}
