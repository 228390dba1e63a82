/* Sets a socket option that does not exist. */
#include "incident.h"
#include <sys/socket.h>

int main(void)
{
	int sock, one = 1;

	NEED(sock = socket(AF_UNIX, SOCK_STREAM, 0));
	if (setsockopt(sock, SOL_SOCKET, 9999, &one, sizeof one) < 0)
		return failed("setsockopt");
	return 0;
}
