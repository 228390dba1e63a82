/* Asks a pipe for its terminal modes. */
#include "incident.h"
#include <sys/ioctl.h>
#include <termios.h>

int main(void)
{
	struct termios modes;
	int ends[2];

	NEED(pipe(ends));
	if (ioctl(ends[0], TCGETS, &modes) < 0)
		return failed("TCGETS");
	return 0;
}
