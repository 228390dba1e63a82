/* Writes until a tmpfs with a size limit is full; the failing write is not the first one. */
#include "incident.h"

int main(void)
{
	static char page[4096];
	int fd;

	world("size=32k");
	fd = make_file("data", 0600, "");
	for (;;)
		if (write(fd, page, sizeof page) < 0)
			return failed("write");
}
