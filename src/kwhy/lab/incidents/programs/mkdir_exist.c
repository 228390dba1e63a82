/* Makes a directory that exists, and exits without a word. */
#include "incident.h"

int main(void)
{
	world("size=1m");
	NEED(mkdir("twice", 0700));
	return mkdir("twice", 0700) < 0;
}
