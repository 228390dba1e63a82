/* Changes into a directory that nobody may search. */
#include "incident.h"

int main(void)
{
	world("mode=755");
	NEED(mkdir("vault", 0700));
	become_nobody();
	if (chdir("vault") < 0)
		return failed("vault");
	return 0;
}
