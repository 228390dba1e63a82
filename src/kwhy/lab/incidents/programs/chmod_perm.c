/* A child that is nobody changes the mode of root's file; the parent passes its status on. */
#include "incident.h"

int main(void)
{
	pid_t child;

	world("mode=755");
	make_file("roots", 0644, "x");
	NEED(child = fork());
	if (child)
		return exit_like(child);
	become_nobody();
	if (chmod("roots", 0666) < 0)
		return failed("chmod");
	return 0;
}
