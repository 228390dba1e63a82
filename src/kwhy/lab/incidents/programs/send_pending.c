/* Sends to a UDP port that nobody has: the answer to the first packet fails the second call. */
#include "incident.h"

#include <arpa/inet.h>
#include <sys/socket.h>

int main(void)
{
	struct sockaddr_in nobody = {.sin_family = AF_INET, .sin_port = htons(9)};
	int fd;

	nobody.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	NEED(fd = socket(AF_INET, SOCK_DGRAM, 0));
	NEED(connect(fd, (struct sockaddr *)&nobody, sizeof(nobody)));
	NEED(send(fd, "x", 1, 0));
	if (send(fd, "x", 1, 0) < 0)
		return failed("send");
	return 0;
}
