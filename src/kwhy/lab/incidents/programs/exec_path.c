/* Looks for a program along PATH: missing, found but not executable, missing. EACCES is the story. */
#include "incident.h"

int main(void)
{
	char *argv[] = {"tool", NULL};

	world("mode=755");
	NEED(mkdir("one", 0755));
	NEED(mkdir("two", 0755));
	NEED(mkdir("three", 0755));
	NEED(close(make_file("two/tool", 0644, "#!/bin/sh\n")));
	NEED(setenv("PATH", "/tmp/one:/tmp/two:/tmp/three", 1));
	become_nobody();
	execvp("tool", argv);
	return failed("tool");
}
