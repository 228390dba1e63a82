/* Opens a named pipe for writing, without waiting for the reader that is not there. */
#include "incident.h"

int main(void)
{
	world("size=1m");
	NEED(mkfifo("queue", 0600));
	if (open("queue", O_WRONLY | O_NONBLOCK) < 0)
		return failed("queue");
	return 0;
}
