/* Writes to a memory file that is sealed against writing. */
#include "incident.h"
#include <sys/mman.h>

int main(void)
{
	int fd;

	NEED(fd = memfd_create("sealed", MFD_ALLOW_SEALING));
	NEED(write(fd, "wax", 3));
	NEED(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
	if (write(fd, "more", 4) < 0)
		return failed("write");
	return 0;
}
