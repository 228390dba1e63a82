/* Executes a program with one argument longer than the kernel takes. */
#include "incident.h"

int main(void)
{
	static char huge[200000];
	char *argv[] = {"self", huge, NULL}, *envp[] = {NULL};

	memset(huge, 'x', sizeof huge - 1);
	execve("/proc/self/exe", argv, envp);
	return failed("execve");
}
