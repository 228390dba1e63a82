/* Maps a pipe into memory. */
#include "incident.h"
#include <sys/mman.h>

int main(void)
{
	int ends[2];

	NEED(pipe(ends));
	if (mmap(NULL, 4096, PROT_READ, MAP_SHARED, ends[0], 0) == MAP_FAILED)
		return failed("mmap");
	return 0;
}
