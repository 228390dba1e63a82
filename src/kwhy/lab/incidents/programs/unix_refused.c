/* Connects to a unix socket whose server is gone, while its name is still there. */
#include "incident.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(void)
{
	struct sockaddr_un name = {AF_UNIX, "server"};
	int server, client;

	world("size=1m");
	NEED(server = socket(AF_UNIX, SOCK_STREAM, 0));
	NEED(bind(server, (struct sockaddr *)&name, sizeof name));
	NEED(close(server));
	NEED(client = socket(AF_UNIX, SOCK_STREAM, 0));
	if (connect(client, (struct sockaddr *)&name, sizeof name) < 0)
		return failed("connect");
	return 0;
}
