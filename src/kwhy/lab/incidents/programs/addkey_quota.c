/* Adds a key with a payload above the user's quota. */
#include "incident.h"
#include <linux/keyctl.h>

int main(void)
{
	static char payload[30000];

	become_nobody();
	if (syscall(SYS_add_key, "user", "kwhy", payload, sizeof payload,
		    KEY_SPEC_PROCESS_KEYRING) < 0)
		return failed("add_key");
	return 0;
}
