/* Moves a directory into a directory below itself. */
#include "incident.h"

int main(void)
{
	world("size=1m");
	NEED(mkdir("above", 0700));
	NEED(mkdir("above/below", 0700));
	if (rename("above", "above/below/inside") < 0)
		return failed("rename");
	return 0;
}
