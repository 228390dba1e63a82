/* Nobody loads a module. */
#include "incident.h"

int main(void)
{
	become_nobody();
	if (syscall(SYS_init_module, "nothing", 7, "") < 0)
		return failed("init_module");
	return 0;
}
