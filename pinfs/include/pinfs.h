/* SPDX-License-Identifier: MIT */
/*
 * pinfs.h - pins of byte ranges, owned by an open file.
 *
 * A pin is a promise of the file system: while it stands, no operation takes these bytes out of the file. Neither
 * truncate nor fallocate(PUNCH_HOLE) frees the storage under them, so a device (or a mapping) can go on using it.
 *
 *   PINFS_IOC_PIN    registers a pin and returns its id
 *   PINFS_IOC_UNPIN  releases it
 *   PINFS_IOC_QUERY  tells how a pin of this handle stands, and which one comes next
 *
 * All three go to a descriptor of a regular file on a pinfs mount, opened for writing. The pin belongs to the open file
 * description: fork(2), dup(2) and SCM_RIGHTS share it, and the last close(2) releases it. A mapping does not keep
 * the description open: keep the descriptor as long as the mapping.
 *
 * A *deny* pin makes every removal of its bytes fail with EBUSY. A *lease* is broken instead: the removal waits, the
 * holder gets its signal, 1 is added to the counter of its eventfd, and PINFS_IOC_QUERY tells what is wanted and how
 * much time is left. The holder lets go of the memory first and then calls PINFS_IOC_UNPIN. If it does not, the deadline
 * and the policy of the mount decide.
 *
 * poll(2) on the descriptor reports POLLPRI as well, on mounts with `-o poll=on`. By default it does so until io_uring
 * is used on the mount, so that a program relies on its eventfd.
 *
 * All three calls work while a truncate of the same file waits. (setxattr does not: the kernel holds the inode's lock.)
 *
 * Errors, in errno: EINVAL (malformed), ENXIO (the range does not lie inside the file), EAGAIN (a removal of an
 * overlapping range is under way), EDQUOT (limits), EACCES (descriptor not open for writing), EBADF (the eventfd is not
 * open), EPERM (the daemon may not fetch the eventfd: its log says why), ENOENT (no such pin on this handle), ENOTTY (not
 * a pinfs file, or a pinfs that is mounted without its bridge and so has no ioctls).
 */
#ifndef PINFS_H
#define PINFS_H

#include <linux/ioctl.h>
#include <linux/types.h>

#ifdef __cplusplus
#define PINFS_STATIC_ASSERT(condition, text) static_assert(condition, text)
#else
#define PINFS_STATIC_ASSERT(condition, text) _Static_assert(condition, text)
#endif

/* Values of mode. */
#define PINFS_DENY 0u
#define PINFS_LEASE 1u

/* Values of signal besides a signal's number. */
#define PINFS_SIGNAL_NONE 0
#define PINFS_SIGNAL_DEFAULT (-1) /* SIGIO for a lease, none for a deny pin */

/* Bits of flags. */
#define PINFS_PIN_DIRTY 1u   /* a device may write here: flush the range before the release is answered */
#define PINFS_PIN_EVENTFD 2u /* eventfd counts */

/* Values of state. */
#define PINFS_HELD 0u
#define PINFS_BREAKING 1u

/* Where a removal takes everything from break_from on. */
#define PINFS_TO_END (~(__u64)0)

#define PINFS_NOTE_SIZE 64

struct pinfs_pin {
	__u64 start;    /* first byte */
	__u64 length;   /* bytes; 0: to the end of the file, wherever that end moves */
	__u32 mode;     /* PINFS_DENY or PINFS_LEASE */
	__s32 signal;   /* sent to the process that registers the pin when its lease is broken; si_value is the id */
	__u32 flags;    /* of PINFS_PIN_DIRTY and PINFS_PIN_EVENTFD */
	__u32 eventfd;  /* with PINFS_PIN_EVENTFD: the eventfd(2) that 1 is added to when a break of this pin begins; else 0 */
	__u64 id;       /* out: names the pin from now on */
	char note[PINFS_NOTE_SIZE]; /* shown in listings; ends with NUL */
};

struct pinfs_unpin {
	__u64 id;
};

struct pinfs_query {
	__u64 id;           /* in: which pin, 0: the first of this handle; out: which pin it was */
	__u64 start;        /* out, as all that follow */
	__u64 length;
	__u32 mode;
	__u32 state;        /* PINFS_HELD or PINFS_BREAKING */
	__s64 remaining_ms; /* until the deadline of the break; -1: held */
	__u64 break_from;   /* the bytes that the removal wants, [break_from, break_to) */
	__u64 break_to;     /* PINFS_TO_END: all from break_from on */
	__u64 next_id;      /* the next pin of this handle, 0: there is none */
};

#define PINFS_IOC_PIN _IOWR('P', 0xA0, struct pinfs_pin)
#define PINFS_IOC_UNPIN _IOW('P', 0xA1, struct pinfs_unpin)
#define PINFS_IOC_QUERY _IOWR('P', 0xA2, struct pinfs_query)

/* The sizes are part of the ioctl numbers: the same on 32-bit and 64-bit, with no padding in between. */
PINFS_STATIC_ASSERT(sizeof(struct pinfs_pin) == 104, "struct pinfs_pin is 104 bytes");
PINFS_STATIC_ASSERT(sizeof(struct pinfs_unpin) == 8, "struct pinfs_unpin is 8 bytes");
PINFS_STATIC_ASSERT(sizeof(struct pinfs_query) == 64, "struct pinfs_query is 64 bytes");

#endif /* PINFS_H */
