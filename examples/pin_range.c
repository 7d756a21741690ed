/* SPDX-License-Identifier: MIT */
/*
 * pin_range - map a range of a file under a lease, and let go of it when the file is to be truncated.
 *
 *   cc -I "$(python3 -c 'import pinfs, pathlib; print(pathlib.Path(pinfs.__file__).parent / "include")')" \
 *      -o pin_range pin_range.c
 *   ./pin_range FILE [START [LENGTH]]        and, in another terminal:   truncate -s 0 FILE
 *
 * Prints one line for each step. Exit code: 0 after a break was answered, 1 on an error, 2 on wrong usage.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pinfs.h"

static int fail(const char *what)
{
	if (errno == ENOTTY)
		fprintf(stderr, "pin_range: %s: not a file of a pinfs mount (with its bridge)\n", what);
	else
		fprintf(stderr, "pin_range: %s: %s\n", what, strerror(errno));
	return 1;
}

static int parse(const char *text, uint64_t *value)
{
	char *end;

	if (*text < '0' || *text > '9')
		return -1;
	errno = 0;
	*value = strtoull(text, &end, 0);
	return (errno || *end) ? -1 : 0;
}

/* Wait until the lease is broken, and print what is wanted. A program with an event loop waits for the eventfd there. */
static int wait_for_break(int fd, int broken, uint64_t id)
{
	struct pinfs_query query = {.id = id};
	uint64_t breaks;

	while (read(broken, &breaks, sizeof(breaks)) < 0)
		if (errno != EINTR)
			return fail("read");
	if (ioctl(fd, PINFS_IOC_QUERY, &query) < 0)
		return fail("PINFS_IOC_QUERY");
	printf("breaking: bytes from %" PRIu64 " are wanted, %" PRId64 " ms left\n", (uint64_t)query.break_from,
	       (int64_t)query.remaining_ms);
	return 0;
}

/* Use the mapping until it is wanted back. The order matters: first the memory, then the pin. */
static int hold(int fd, int broken, uint64_t id, uint64_t start, uint64_t length)
{
	uint64_t skew = start % (uint64_t)sysconf(_SC_PAGESIZE);
	unsigned char *memory = mmap(NULL, length + skew, PROT_READ, MAP_SHARED, fd, (off_t)(start - skew));
	struct pinfs_unpin unpin = {.id = id};

	if (memory == MAP_FAILED)
		return fail("mmap");
	printf("mapped: the first byte is 0x%02x\n", memory[skew]);
	if (wait_for_break(fd, broken, id))
		return 1;
	if (munmap(memory, length + skew) < 0)
		return fail("munmap");
	if (ioctl(fd, PINFS_IOC_UNPIN, &unpin) < 0)
		return fail("PINFS_IOC_UNPIN");
	printf("released\n");
	return 0;
}

int main(int argc, char **argv)
{
	struct pinfs_pin pin = {.mode = PINFS_LEASE, .signal = PINFS_SIGNAL_NONE, .note = "pin_range"};
	uint64_t start = 0, length = 0;
	struct stat st;
	int fd, broken;

	setvbuf(stdout, NULL, _IOLBF, 0); /* a reader of the output in a pipe sees each step at once */
	if (argc < 2 || argc > 4 || (argc > 2 && parse(argv[2], &start)) || (argc > 3 && parse(argv[3], &length))) {
		fprintf(stderr, "usage: pin_range FILE [START [LENGTH]]   (bytes; LENGTH 0 or none: to the end)\n");
		return 2;
	}
	fd = open(argv[1], O_RDWR | O_CLOEXEC); /* pinning takes write access */
	if (fd < 0)
		return fail(argv[1]);
	broken = eventfd(0, EFD_CLOEXEC);
	if (broken < 0)
		return fail("eventfd");
	pin.flags = PINFS_PIN_EVENTFD;
	pin.eventfd = (uint32_t)broken;
	pin.start = start;
	pin.length = length;
	if (ioctl(fd, PINFS_IOC_PIN, &pin) < 0)
		return fail("PINFS_IOC_PIN");
	/* Read the size only now: from here on the file cannot shrink before a break. */
	if (fstat(fd, &st) < 0)
		return fail("fstat");
	printf("pinned: id %" PRIu64 "\n", (uint64_t)pin.id);
	return hold(fd, broken, pin.id, start, length ? length : (uint64_t)st.st_size - start);
}
