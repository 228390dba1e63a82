/* Takes a message from an empty System V queue without waiting. */
#include "incident.h"
#include <sys/msg.h>

int main(void)
{
	struct { long type; char text[8]; } message;
	int queue;

	NEED(unshare(CLONE_NEWIPC));
	NEED(queue = msgget(IPC_PRIVATE, 0600));
	if (msgrcv(queue, &message, sizeof message.text, 0, IPC_NOWAIT) < 0)
		return failed("msgrcv");
	return 0;
}
