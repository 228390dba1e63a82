/* Asks prctl() for something that no kernel knows. */
#include "incident.h"
#include <sys/prctl.h>

int main(void)
{
	if (prctl(9999, 0, 0, 0, 0) < 0)
		return failed("prctl");
	return 0;
}
