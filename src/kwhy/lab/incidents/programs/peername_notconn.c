/* Asks for the peer of a TCP socket that was never connected. */
#include "incident.h"
#include <netinet/in.h>
#include <sys/socket.h>

int main(void)
{
	struct sockaddr_in peer;
	socklen_t size = sizeof peer;
	int sock;

	NEED(sock = socket(AF_INET, SOCK_STREAM, 0));
	if (getpeername(sock, (struct sockaddr *)&peer, &size) < 0)
		return failed("getpeername");
	return 0;
}
