/* Registers io_uring buffers that are larger than RLIMIT_MEMLOCK, without CAP_IPC_LOCK. */
#include "incident.h"
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/uio.h>

int main(void)
{
	struct io_uring_params params = {0};
	struct iovec buffer = {NULL, 1 << 20};
	int ring;

	buffer.iov_base = mmap(NULL, buffer.iov_len, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	limit(RLIMIT_MEMLOCK, 256 << 10);
	become_nobody();
	NEED(ring = syscall(SYS_io_uring_setup, 4, &params));
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1) < 0)
		return failed("io_uring_register");
	return 0;
}
