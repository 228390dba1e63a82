/* Opens root's private file as nobody. */
#include "incident.h"

int main(void)
{
	world("mode=755");
	make_file("secret", 0600, "hush");
	become_nobody();
	if (open("secret", O_RDONLY) < 0)
		return failed("secret");
	return 0;
}
