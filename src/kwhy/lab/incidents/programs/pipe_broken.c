/* Writes to a pipe without a reader, SIGPIPE ignored. */
#include "incident.h"

int main(void)
{
	int ends[2];

	signal(SIGPIPE, SIG_IGN);
	NEED(pipe(ends));
	NEED(close(ends[0]));
	if (write(ends[1], "hello?", 6) < 0)
		return failed("write");
	return 0;
}
