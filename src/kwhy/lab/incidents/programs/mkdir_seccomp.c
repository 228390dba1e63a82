/* Makes a directory under a seccomp filter that answers EPERM in the kernel's place. */
#include "incident.h"

#include <stddef.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

int main(void)
{
	struct sock_filter rules[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mkdir, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(rules) / sizeof(*rules), rules};

	world("size=1m");
	NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	NEED(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
	syscall(SYS_mkdir, "new", 0700);
	return failed("new");
}
