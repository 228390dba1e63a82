/* Links to somebody else's file that the caller may not even read (fs.protected_hardlinks). */
#include "incident.h"

int main(void)
{
	int fd;

	world("size=1m,mode=0777");
	NEED(fd = open("/proc/sys/fs/protected_hardlinks", O_WRONLY));
	NEED(write(fd, "1", 1));
	NEED(close(fd));
	NEED(close(make_file("secret", 0600, "x")));
	become_nobody();
	link("secret", "mine");
	return failed("mine");
}
