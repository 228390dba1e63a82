/* Asks for the working directory with a buffer that is too small. */
#include "incident.h"

int main(void)
{
	char small[4];

	world("size=1m");
	if (syscall(SYS_getcwd, small, sizeof small) < 0)
		return failed("getcwd");
	return 0;
}
