/* Asks for a protocol that TCP/IP does not have; the kernel waits for modprobe twice. */
#include "incident.h"
#include <sys/socket.h>

int main(void)
{
	if (socket(AF_INET, SOCK_STREAM, 200) < 0)
		return failed("socket");
	return 0;
}
