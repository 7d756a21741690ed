/* SPDX-License-Identifier: MIT */
/* What rdma_region.c and rdma_peer.c share: their messages, their connection, and how they report errors. */
#ifndef RDMA_REGION_H
#define RDMA_REGION_H

#include <errno.h>
#include <rdma/rdma_cma.h>
#include <rdma/rdma_verbs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PORT "7471"
#define RETRY_MS 100       /* between two looks at what has to change first */
#define STOP_LIMIT_MS 1000 /* how long a peer may take to stop */
#define MESSAGES 4         /* that may be on their way to a peer */
#define MESSAGE_FLAGS (IBV_SEND_INLINE | IBV_SEND_SIGNALED)

/* What the server tells its peer. length 0: stop, the region is about to go; the peer answers with the same message. */
struct region {
	uint64_t address;
	uint64_t length;
	uint32_t key;
	uint32_t stop; /* which stop it is: an answer may come after the server has ceased to wait for it */
};

static inline int fail(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	return -1;
}

static inline int say(const char *what, const char *hint)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, hint);
	return -1;
}

static inline struct rdma_addrinfo *look_up(const char *address, const char *port, int flags)
{
	struct rdma_addrinfo hints = {.ai_flags = flags, .ai_port_space = RDMA_PS_TCP}, *found = NULL;

	if (rdma_getaddrinfo(address, port, &hints, &found)) {
		say(address, "no address of an RDMA device, or no way to it (rdma link, ip address)");
		return NULL;
	}
	return found;
}

static inline void queue_sizes(struct ibv_qp_init_attr *attributes)
{
	*attributes = (struct ibv_qp_init_attr){
		.qp_type = IBV_QPT_RC,
		.cap = {.max_send_wr = 16, .max_recv_wr = MESSAGES, .max_send_sge = 1, .max_recv_sge = 1,
			.max_inline_data = sizeof(struct region)},
	};
}

static struct rdma_conn_param connection = {
	.responder_resources = 1, .initiator_depth = 1, .retry_count = 7, .rnr_retry_count = 7};

/* Wait for one completion. Its status, or -1: none came within limit_ms. */
static inline int completion(struct ibv_cq *cq, struct ibv_wc *wc, int limit_ms)
{
	for (int waited = 0; waited <= limit_ms; waited++) {
		if (ibv_poll_cq(cq, 1, wc) > 0)
			return (int)wc->status;
		usleep(1000);
	}
	return -1;
}

#endif
