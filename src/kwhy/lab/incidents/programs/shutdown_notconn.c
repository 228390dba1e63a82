/* Shuts down a TCP socket that was never connected. */
#include "incident.h"

#include <sys/socket.h>

int main(void)
{
	int fd;

	NEED(fd = socket(AF_INET, SOCK_STREAM, 0));
	if (shutdown(fd, SHUT_RDWR) < 0)
		return failed("shutdown");
	return 0;
}
