/* Opens one of two symbolic links that point at each other. */
#include "incident.h"

int main(void)
{
	world("size=1m");
	NEED(symlink("yang", "yin"));
	NEED(symlink("yin", "yang"));
	if (open("yin", O_RDONLY) < 0)
		return failed("yin");
	return 0;
}
