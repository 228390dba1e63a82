/* Protects an address range that is no longer mapped. */
#include "incident.h"
#include <sys/mman.h>

int main(void)
{
	void *page = mmap(NULL, 3 * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	NEED(munmap((char *)page + 4096, 4096));
	if (mprotect((char *)page + 4096, 4096, PROT_NONE) < 0)
		return failed("mprotect");
	return 0;
}
