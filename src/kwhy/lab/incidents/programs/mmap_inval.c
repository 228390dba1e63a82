/* Maps nothing at all: a length of zero. */
#include "incident.h"
#include <sys/mman.h>

int main(void)
{
	int fd;

	world("size=1m");
	fd = make_file("empty", 0600, "");
	if (mmap(NULL, 0, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED)
		return failed("mmap");
	return 0;
}
