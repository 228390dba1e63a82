/* Connects to a TCP port of this host where nobody listens. */
#include "incident.h"
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int main(void)
{
	struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(9)};
	struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int sock;

	there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	NEED(unshare(CLONE_NEWNET));
	NEED(sock = socket(AF_INET, SOCK_STREAM, 0));
	NEED(ioctl(sock, SIOCSIFFLAGS, &lo));
	if (connect(sock, (struct sockaddr *)&there, sizeof there) < 0)
		return failed("connect");
	return 0;
}
