/* Reads from an empty pipe that must not block. */
#include "incident.h"

int main(void)
{
	int ends[2];
	char byte;

	NEED(pipe2(ends, O_NONBLOCK));
	if (read(ends[0], &byte, 1) < 0)
		return failed("read");
	return 0;
}
