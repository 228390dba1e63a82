/* Executes a file that is neither a program nor a script. */
#include "incident.h"

int main(void)
{
	char *argv[] = {"tool", NULL}, *envp[] = {NULL};

	world("size=1m");
	NEED(close(make_file("tool", 0755, "\001\002\003\004 this is not a program\n")));
	execve("./tool", argv, envp);
	return failed("tool");
}
