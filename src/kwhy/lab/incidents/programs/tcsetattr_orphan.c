/* A background process of an orphaned process group sets the modes of its controlling terminal. */
#include "incident.h"
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <termios.h>

static int background(int tty)
{
	struct termios modes;
	sigset_t set;
	int sig;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	NEED(sigprocmask(SIG_BLOCK, &set, NULL));
	NEED(prctl(PR_SET_PDEATHSIG, SIGUSR1));
	NEED(kill(getppid(), SIGKILL)); /* from now on nobody of this session looks after us */
	NEED(-sigwait(&set, &sig));
	NEED(tcgetattr(tty, &modes));
	if (tcsetattr(tty, TCSADRAIN, &modes) < 0)
		return failed("tcsetattr");
	return 0;
}

int main(void)
{
	int ptmx, tty, ends[2];
	char code = 97;
	pid_t leader;

	world("size=1m");
	NEED(mount("devpts", "/tmp", "devpts", 0, "newinstance,ptmxmode=0666"));
	NEED(ptmx = open("/tmp/ptmx", O_RDWR | O_NOCTTY));
	NEED(ioctl(ptmx, TIOCSPTLCK, &(int){0}));
	NEED(tty = ioctl(ptmx, TIOCGPTPEER, O_RDWR | O_NOCTTY));
	NEED(pipe(ends));
	NEED(leader = fork());
	if (leader)
		return exit_like(leader);
	NEED(setsid());
	NEED(ioctl(tty, TIOCSCTTY, 0)); /* the leader's group is the foreground one */
	if (fork() == 0) {
		NEED(setpgid(0, 0));
		if (fork() == 0) {
			code = (char)background(tty);
			NEED(write(ends[1], &code, 1));
			_exit(code);
		}
		pause();
	}
	NEED(read(ends[0], &code, 1));
	return code;
}
