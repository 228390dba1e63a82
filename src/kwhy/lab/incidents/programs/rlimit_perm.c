/* Raises a hard limit as nobody. */
#include "incident.h"

int main(void)
{
	struct rlimit more = {32, 64};

	limit(RLIMIT_NOFILE, 32);
	become_nobody();
	if (setrlimit(RLIMIT_NOFILE, &more) < 0)
		return failed("setrlimit");
	return 0;
}
