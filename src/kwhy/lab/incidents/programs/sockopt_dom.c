/* Sets a receive timeout of a million microseconds, one too many. */
#include "incident.h"
#include <sys/socket.h>
#include <sys/time.h>

int main(void)
{
	struct timeval timeout = {0, 1000000};
	int sock;

	NEED(sock = socket(AF_UNIX, SOCK_STREAM, 0));
	if (setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) < 0)
		return failed("SO_RCVTIMEO");
	return 0;
}
