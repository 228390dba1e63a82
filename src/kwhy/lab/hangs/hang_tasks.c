/*
 * Puts processes into known waits: hang_tasks NAME:STEP,STEP,... NAME:STEP,...
 *
 * Each argument is one process of that name, which takes its steps in order and then sleeps:
 *
 *   KIND=N          takes lock N of that kind from the module behind /dev/kwhy_hang
 *   inode=PATH      takes the lock of that file's inode; truncate=PATH and splice=PATH likewise
 *   rm=PATH         removes a file
 *   flock=PATH      flock(LOCK_EX); share=PATH flock(LOCK_SH); posix=PATH fcntl on the whole file
 *   futex=N         pthread_mutex_lock on a mutex that all share
 *   pi=N            FUTEX_LOCK_PI on word N of those that all share
 *   pipe=N          reads from pipe N, which all processes hold open; fill=N fills and writes on
 *   vfork=0         vforks a child that sleeps
 *   crowd=N         becomes N processes more, which all go on with the next step
 *   threads=N       becomes N threads, likewise; the first one sleeps
 *   ladder=N        becomes N threads, each of which holds a pthread_mutex and wants the one before
 *   child=0         has a child that sleeps, and waits for its end
 *   meet=0          waits until all that have such a step have come to theirs
 *   after=NAME      waits until that process sleeps in its last step
 *   runs=NAME       waits until that process runs in its last step, in the kernel
 *   busy=0          runs for ever; sleep=0 sleeps for ever
 *   exit=0          ends
 *
 * When all have come to their last step and sleep there, run or are gone: prints "NAME PID" for each
 * and ends, leaving them behind.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define TASKS 128
#define LOCKS 16
#define PATIENCE 6000 /* looks, 10 ms each */
#define RUNS 10 /* ticks in the kernel that prove that a task is where it stays */

struct shared {
	pthread_mutex_t mutexes[LOCKS];
	unsigned int words[LOCKS];
	atomic_int pid[TASKS], last[TASKS], came;
};

static struct shared *shared;
static int pipes[LOCKS][2];
static char **names;
static int tasks, meeting;

static void fail(const char *what)
{
	perror(what);
	kill(0, SIGKILL);
	exit(99);
}

/* The letter of a task's state, 0 if it is gone, and its time in the kernel in ticks. */
static char look_at(int pid, unsigned long *ticks)
{
	char path[64], line[512], *end;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	file = fopen(path, "r");
	if (!file)
		return 0;
	end = fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
	fclose(file);
	if (!end)
		return 0;
	if (ticks)
		sscanf(end + 3, "%*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %lu", ticks);
	return end[2];
}

static void pause_a_little(void)
{
	usleep(10000);
}

static void await_asleep(int task, int running_will_do)
{
	int looks, seen = 0;

	for (looks = 0; looks < PATIENCE; looks++) {
		char state = shared->last[task] ? look_at(shared->pid[task], NULL) : 'r';

		if (!state || state == 'Z' || (running_will_do && state == 'R'))
			return;
		seen = state == 'D' || state == 'S' ? seen + 1 : 0;
		if (seen >= 5)
			return;
		pause_a_little();
	}
	errno = ETIMEDOUT;
	fail(names[task]);
}

static void await_running(int task)
{
	unsigned long first = 0, ticks = 0;
	int looks;

	for (looks = 0; looks < PATIENCE; looks++) {
		if (shared->last[task] && !look_at(shared->pid[task], &ticks))
			break;
		first = first ? first : ticks;
		if (first && ticks >= first + RUNS)
			return;
		pause_a_little();
	}
	errno = ETIMEDOUT;
	fail(names[task]);
}

static int task_named(const char *name)
{
	int task;

	for (task = 0; task < tasks; task++)
		if (!strcmp(names[task], name))
			return task;
	errno = ESRCH;
	fail(name);
	return -1;
}

static void take(const char *kind, int number)
{
	static int device = -1;
	char text[64];

	if (device < 0)
		device = open("/dev/kwhy_hang", O_WRONLY | O_CLOEXEC);
	snprintf(text, sizeof text, "take %s %d", kind, number);
	if (device < 0 || write(device, text, strlen(text)) < 0)
		fail(text);
}

static int opened(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0)
		fail(path);
	return fd;
}

static void fill(int fd)
{
	static char block[4096];

	for (;;)
		if (write(fd, block, sizeof block) < 0)
			fail("write");
}

static void lock_all(int fd)
{
	struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	if (fcntl(fd, F_SETLKW, &whole))
		fail("fcntl");
}

static void crowd(int number)
{
	while (number-- > 0) {
		int pid = fork();

		if (pid < 0)
			fail("fork");
		if (!pid)
			return;
	}
}

static void go_on(char *steps, int task);

static void *thread(void *steps)
{
	go_on(steps, -1);
	return NULL;
}

static pthread_mutex_t *rungs;

static void *rung(void *number)
{
	long here = (long)number;

	pthread_mutex_lock(&rungs[here]);
	while (here && !rungs[here - 1].__data.__lock)
		pause_a_little();
	if (here)
		pthread_mutex_lock(&rungs[here - 1]);
	for (;;)
		pause();
	return NULL;
}

static void start_thread(void *(*begin)(void *), void *with)
{
	pthread_attr_t small;
	pthread_t id;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 32768);
	pthread_attr_setguardsize(&small, 0);
	errno = pthread_create(&id, &small, begin, with);
	if (errno)
		fail("pthread_create");
}

static void ladder(long number)
{
	long here;

	rungs = calloc(number, sizeof *rungs);
	if (!rungs)
		fail("calloc");
	for (here = 0; here < number; here++)
		start_thread(rung, (void *)here);
}

static void await_child(void)
{
	int pid = fork();

	if (pid < 0)
		fail("fork");
	if (!pid)
		for (;;)
			pause();
	waitpid(pid, NULL, 0);
}

static void step(const char *kind, const char *value)
{
	int number = atoi(value);
	char byte;

	if (!strcmp(kind, "meet")) {
		shared->came++;
		while (shared->came < meeting)
			pause_a_little();
	} else if (!strcmp(kind, "crowd"))
		crowd(number);
	else if (!strcmp(kind, "ladder"))
		ladder(number);
	else if (!strcmp(kind, "child"))
		await_child();
	else if (!strcmp(kind, "after"))
		await_asleep(task_named(value), 0);
	else if (!strcmp(kind, "runs"))
		await_running(task_named(value));
	else if (!strcmp(kind, "inode") || !strcmp(kind, "truncate") || !strcmp(kind, "splice"))
		take(kind, opened(value));
	else if (!strcmp(kind, "rm"))
		unlink(value);
	else if (!strcmp(kind, "flock"))
		flock(opened(value), LOCK_EX);
	else if (!strcmp(kind, "share"))
		flock(opened(value), LOCK_SH);
	else if (!strcmp(kind, "posix"))
		lock_all(opened(value));
	else if (!strcmp(kind, "futex"))
		pthread_mutex_lock(&shared->mutexes[number % LOCKS]);
	else if (!strcmp(kind, "pi")) {
		if (syscall(SYS_futex, &shared->words[number % LOCKS], FUTEX_LOCK_PI, 0, NULL))
			fail("futex");
	} else if (!strcmp(kind, "pipe"))
		(void)!read(pipes[number % LOCKS][0], &byte, 1);
	else if (!strcmp(kind, "fill"))
		fill(pipes[number % LOCKS][1]);
	else if (!strcmp(kind, "vfork")) {
		if (!vfork())
			for (;;)
				pause();
	} else if (!strcmp(kind, "busy"))
		for (;;)
			;
	else if (!strcmp(kind, "sleep"))
		for (;;)
			pause();
	else if (!strcmp(kind, "exit"))
		_exit(0);
	else
		take(kind, number);
}

/* A thread has no place of its own in the shared memory: its task is -1. */
static void go_on(char *steps, int task)
{
	char *rest, *word = strtok_r(steps, ",", &rest);

	while (word) {
		char *value = strchr(word, '='), *next;
		int threads, many;

		if (!value) {
			errno = EINVAL;
			fail(word);
		}
		*value++ = 0;
		threads = !strcmp(word, "threads");
		next = threads ? NULL : strtok_r(NULL, ",", &rest);
		for (many = threads ? atoi(value) : 0; many > 0; many--)
			start_thread(thread, strdup(rest));
		if (!next && task >= 0)
			shared->last[task] = 1;
		if (!threads)
			step(word, value);
		word = next;
	}
	for (;;)
		pause();
}

static void run(int task, char *steps)
{
	prctl(PR_SET_NAME, names[task]);
	shared->pid[task] = getpid();
	go_on(steps, task);
}

int main(int argc, char **argv)
{
	pthread_mutexattr_t attributes;
	int task;

	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || argc - 1 > TASKS)
		fail("hang_tasks");
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	for (task = 0; task < LOCKS; task++) {
		pthread_mutex_init(&shared->mutexes[task], &attributes);
		if (pipe(pipes[task]))
			fail("pipe");
	}
	setpgid(0, 0);
	names = calloc(argc, sizeof *names);
	tasks = argc - 1;
	for (task = 0; task < tasks; task++) {
		names[task] = argv[task + 1];
		if (strstr(names[task], "meet="))
			meeting++;
		if (!strchr(names[task], ':')) {
			errno = EINVAL;
			fail(names[task]);
		}
		*strchr(names[task], ':') = 0;
	}
	for (task = 0; task < tasks; task++) {
		int pid = fork();

		if (pid < 0)
			fail("fork");
		if (!pid)
			run(task, names[task] + strlen(names[task]) + 1);
		shared->pid[task] = pid;
	}
	for (task = 0; task < tasks; task++)
		await_asleep(task, 1);
	for (task = 0; task < tasks; task++)
		printf("%s %d\n", names[task], shared->pid[task]);
	fflush(stdout);
	_exit(0);
}
