/* Binds a second TCP socket to a port where the first one listens. */
#include "incident.h"
#include <netinet/in.h>
#include <sys/socket.h>

int main(void)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(8080)};
	int first, second;

	NEED(unshare(CLONE_NEWNET));
	NEED(first = socket(AF_INET, SOCK_STREAM, 0));
	NEED(bind(first, (struct sockaddr *)&here, sizeof here));
	NEED(listen(first, 1));
	NEED(second = socket(AF_INET, SOCK_STREAM, 0));
	if (bind(second, (struct sockaddr *)&here, sizeof here) < 0)
		return failed("bind");
	return 0;
}
