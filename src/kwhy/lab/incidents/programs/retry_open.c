/* Opens a log for writing, makes its directory when that is missing, tries again and fails anew. */
#include "incident.h"

int main(void)
{
	world("nr_inodes=2,mode=1777");
	if (open("log/today", O_WRONLY | O_CREAT, 0600) >= 0)
		return 99;
	NEED(mkdir("log", 0700));
	if (open("log/today", O_WRONLY | O_CREAT, 0600) < 0)
		return failed("log/today");
	return 0;
}
