/* Executes a file that is still open for writing. */
#include "incident.h"

int main(void)
{
	char *argv[] = {"tool", NULL}, *envp[] = {NULL};

	world("size=1m");
	make_file("tool", 0755, "#!/bin/sh\n");
	execve("./tool", argv, envp);
	return failed("tool");
}
