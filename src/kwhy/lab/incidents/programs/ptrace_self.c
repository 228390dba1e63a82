/* Attaches as a tracer to itself. */
#include "incident.h"
#include <sys/ptrace.h>

int main(void)
{
	if (ptrace(PTRACE_ATTACH, getpid(), NULL, NULL) < 0)
		return failed("ptrace");
	return 0;
}
