/* Enters a network namespace as nobody. */
#include "incident.h"

int main(void)
{
	int ns;

	NEED(ns = open("/proc/self/ns/net", O_RDONLY));
	become_nobody();
	if (setns(ns, CLONE_NEWNET) < 0)
		return failed("setns");
	return 0;
}
