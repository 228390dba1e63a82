/* Unmounts a file system in which a file is still open. */
#include "incident.h"

int main(void)
{
	world("size=1m");
	NEED(mkdir("usb", 0700));
	NEED(mount("tmpfs", "usb", "tmpfs", 0, "size=1m"));
	make_file("usb/open", 0600, "x");
	if (umount("usb") < 0)
		return failed("umount");
	return 0;
}
