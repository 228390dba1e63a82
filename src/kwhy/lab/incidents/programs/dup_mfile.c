/* Duplicates a descriptor until RLIMIT_NOFILE is reached. */
#include "incident.h"

int main(void)
{
	limit(RLIMIT_NOFILE, 16);
	for (;;)
		if (dup(1) < 0)
			return failed("dup");
}
