/* Reads from a pipe at a position. */
#include "incident.h"

int main(void)
{
	int ends[2];
	char byte;

	NEED(pipe(ends));
	NEED(write(ends[1], "x", 1));
	if (pread(ends[0], &byte, 1, 0) < 0)
		return failed("pread");
	return 0;
}
