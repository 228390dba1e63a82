/* What the incidents share: a checked set-up and a private, small tmpfs to make trouble in. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* A step that must not fail. 99 says: the world could not be set up, this is not the incident. */
#define NEED(step) \
	do { \
		if ((long)(step) < 0) { \
			perror("setup: " #step); \
			exit(99); \
		} \
	} while (0)

/* A fresh tmpfs with these mount options, seen by this process alone, as working directory. */
__attribute__((unused)) static void world(const char *options)
{
	NEED(unshare(CLONE_NEWNS));
	NEED(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	NEED(mount("tmpfs", "/tmp", "tmpfs", 0, options));
	NEED(chdir("/tmp"));
}

/* Give up root and every capability for good. */
__attribute__((unused)) static void become_nobody(void)
{
	NEED(setgroups(0, NULL));
	NEED(setresgid(65534, 65534, 65534));
	NEED(setresuid(65534, 65534, 65534));
}

__attribute__((unused)) static void limit(int resource, rlim_t value)
{
	struct rlimit both = {value, value};

	NEED(setrlimit(resource, &both));
}

/* An open file of that name in the working directory, with this content. */
__attribute__((unused)) static int make_file(const char *name, mode_t mode, const char *content)
{
	int fd;

	NEED(fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
	NEED(write(fd, content, strlen(content)));
	NEED(fchmod(fd, mode));
	return fd;
}

/* The sad end of every incident. */
__attribute__((unused)) static int failed(const char *what)
{
	perror(what);
	return 1;
}

/* Exit as that child did. */
__attribute__((unused)) static int exit_like(pid_t child)
{
	int status;

	NEED(waitpid(child, &status, 0));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
}
