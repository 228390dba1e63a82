/* Makes one system call N times and prints how many nanoseconds each took, on average. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long n = argc > 2 ? atol(argv[2]) : 1000, i;
	int bad = argc > 1 && !strcmp(argv[1], "bad"), ends[2], size;
	struct timespec from, to;

	if (pipe(ends))
		return 2;
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (i = 0; i < n; i++)
		/* A pipe is not a terminal (ENOTTY), but it tells how much there is to read. */
		ioctl(ends[0], bad ? TIOCGPGRP : FIONREAD, &size);
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("%.1f\n", ((to.tv_sec - from.tv_sec) * 1e9 + to.tv_nsec - from.tv_nsec) / n);
	return 0;
}
