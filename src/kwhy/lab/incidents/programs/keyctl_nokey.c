/* Reads a key that does not exist. */
#include "incident.h"
#include <linux/keyctl.h>

int main(void)
{
	if (syscall(SYS_keyctl, KEYCTL_READ, 0x2badcafe, NULL, 0, 0) < 0)
		return failed("keyctl");
	return 0;
}
