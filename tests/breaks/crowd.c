/*
 * crowd FILE COUNT process|handle: COUNT processes, each with a lease on one byte of FILE, its own.
 *
 * Says "pinned" when all have theirs. Each lets go when its signal comes, but for the first one, which waits for a line on
 * standard input. Another line ends all; then says "told T again A wrong W": how many got a signal, how many more signals
 * came, and how many signals were not queued ones with a value.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../../pinfs/include/pinfs.h"

struct board {
	atomic_int pinned, told, again, wrong, failed;
};

static struct board *board;
static int gate[2];

static void fail(const char *what)
{
	perror(what);
	atomic_fetch_add(&board->failed, 1);
	_exit(1);
}

static long pin(int fd, const char *path, int number, int by_handle)
{
	char value[64];
	struct pinfs_pin wanted = { .start = (__u64)number, .length = 1, .mode = PINFS_LEASE, .signal = SIGRTMIN };

	if (by_handle) {
		if (ioctl(fd, PINFS_IOC_PIN, &wanted))
			fail("PINFS_IOC_PIN");
		return (long)wanted.id;
	}
	snprintf(value, sizeof value, "%d:1,mode=lease,signal=RTMIN", number);
	if (setxattr(path, "user.pinfs.pin.p", value, strlen(value), 0))
		fail("setxattr");
	return 0;
}

static void release(int fd, const char *path, long id)
{
	char answer[16];
	struct pinfs_unpin unpin = { .id = (__u64)id };

	if (id ? ioctl(fd, PINFS_IOC_UNPIN, &unpin) : getxattr(path, "user.pinfs.release.p", answer, sizeof answer) < 0)
		fail("release");
}

static void hold(const char *path, int number, int by_handle)
{
	sigset_t wanted;
	siginfo_t info;
	char line;
	int fd = by_handle ? open(path, O_RDWR) : -1;
	long id;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(gate[1]);
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGRTMIN);
	id = pin(fd, path, number, by_handle);
	atomic_fetch_add(&board->pinned, 1);
	if (sigwaitinfo(&wanted, &info) < 0)
		fail("sigwaitinfo");
	atomic_fetch_add(&board->wrong, info.si_code != SI_QUEUE || !info.si_value.sival_ptr);
	atomic_fetch_add(&board->told, 1);
	if (!number && read(gate[0], &line, 1) != 1)
		fail("read");
	release(fd, path, id);
	while (sigwaitinfo(&wanted, &info) >= 0)
		atomic_fetch_add(&board->again, 1);
}

int main(int argc, char **argv)
{
	int count = argc == 4 ? atoi(argv[2]) : 0;
	sigset_t blocked;
	char line[16];

	if (count < 1)
		return 2;
	board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	if (board == MAP_FAILED || pipe(gate))
		return 1;
	for (int number = 0; number < count; number++) {
		pid_t child = fork();

		if (child < 0) {
			perror("fork");
			return 1;
		}
		if (!child)
			hold(argv[1], number, !strcmp(argv[3], "handle"));
	}
	while (atomic_load(&board->pinned) < count) {
		if (atomic_load(&board->failed))
			return 1;
		usleep(1000);
	}
	puts("pinned");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin) || write(gate[1], line, 1) != 1)
		return 1;
	if (!fgets(line, sizeof line, stdin))
		return 1;
	signal(SIGTERM, SIG_IGN);
	kill(0, SIGTERM);
	while (wait(NULL) > 0)
		;
	printf("told %d again %d wrong %d\n", board->told, board->again, board->wrong);
	return 0;
}
