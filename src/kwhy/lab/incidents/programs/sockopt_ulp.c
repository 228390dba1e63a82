/* Asks for an upper-layer protocol that no module has; the kernel waits for modprobe first. */
#include "incident.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

int main(void)
{
	int sock;

	NEED(sock = socket(AF_INET, SOCK_STREAM, 0));
	if (setsockopt(sock, IPPROTO_TCP, TCP_ULP, "nosuch", 6) < 0)
		return failed("setsockopt");
	return 0;
}
