/* Renames a file from one mount into another. */
#include "incident.h"

int main(void)
{
	world("size=1m");
	make_file("letter", 0600, "dear");
	NEED(mkdir("abroad", 0700));
	NEED(mount("tmpfs", "abroad", "tmpfs", 0, "size=1m"));
	if (rename("letter", "abroad/letter") < 0)
		return failed("rename");
	return 0;
}
