/* SPDX-License-Identifier: MIT */
/*
 * rdma_peer - read and write the file that rdma_region.c serves, by RDMA.
 *
 *   cc -o rdma_peer rdma_peer.c -lrdmacm -libverbs
 *   ./rdma_peer ADDRESS            reads lines "write OFFSET TEXT" and "read OFFSET LENGTH" (bytes)
 *
 * When the server wants its region back, the peer answers that it has stopped; the next line waits for another region.
 *
 * Prints one line for each step. Exit code: 0 at the end of input, 1 on an error, 2 on wrong usage.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <poll.h>

#include "rdma_region.h"

#define TEXT_SIZE 4096

struct peer {
	struct rdma_cm_id *id;
	struct region region;             /* length 0: none at present */
	struct region messages[MESSAGES]; /* where the server's messages arrive */
	struct ibv_mr *messages_mr, *text_mr;
	char text[TEXT_SIZE + 1];
};

/* Take the server's messages. When it wants the region back nothing is under way here: each write has been waited for. */
static int heed_server(struct peer *peer, int limit_ms)
{
	struct ibv_wc wc;
	struct region *message;
	int status = completion(peer->id->recv_cq, &wc, limit_ms);

	if (status < 0)
		return 0;
	if (status != IBV_WC_SUCCESS)
		return say("the connection has ended", ibv_wc_status_str(wc.status));
	message = (struct region *)(uintptr_t)wc.wr_id;
	peer->region = *message;
	if (rdma_post_recv(peer->id, message, message, sizeof(*message), peer->messages_mr))
		return fail("rdma_post_recv");
	if (peer->region.length) {
		printf("region: %" PRIu64 " bytes\n", peer->region.length);
		return 0;
	}
	printf("region: withdrawn\n");
	if (rdma_post_send(peer->id, NULL, &peer->region, sizeof(peer->region), NULL, MESSAGE_FLAGS))
		return fail("rdma_post_send");
	if (completion(peer->id->send_cq, &wc, STOP_LIMIT_MS) != IBV_WC_SUCCESS)
		return say("stopping", "the server is gone");
	return 0;
}

static int command(struct peer *peer, const char *line)
{
	struct region *region = &peer->region;
	uint64_t offset, length = 0;
	int start = 0, writes, status;
	struct ibv_wc wc;

	while (!region->length)
		if (heed_server(peer, RETRY_MS))
			return -1;
	writes = sscanf(line, "write %" SCNu64 " %n", &offset, &start) == 1 && start;
	if (writes) {
		length = strcspn(line + start, "\n");
		memcpy(peer->text, line + start, length < TEXT_SIZE ? length : TEXT_SIZE);
	} else if (sscanf(line, "read %" SCNu64 " %" SCNu64, &offset, &length) != 2) {
		printf("neither \"write OFFSET TEXT\" nor \"read OFFSET LENGTH\"\n");
		return 0;
	}
	if (!length || length > TEXT_SIZE || offset > region->length || length > region->length - offset) {
		printf("not 1 to %d bytes within the region of %" PRIu64 "\n", TEXT_SIZE, region->length);
		return 0;
	}
	if ((writes ? rdma_post_write : rdma_post_read)(peer->id, NULL, peer->text, length, peer->text_mr, IBV_SEND_SIGNALED,
							region->address + offset, region->key))
		return fail("post");
	do
		status = completion(peer->id->send_cq, &wc, 60000);
	while (status < 0);
	if (writes || status != IBV_WC_SUCCESS)
		printf("%s: %s\n", writes ? "write" : "read", ibv_wc_status_str(wc.status));
	else
		printf("read: %.*s\n", (int)length, peer->text);
	return status == IBV_WC_SUCCESS ? 0 : say("the connection is broken", "start the peer anew");
}

static int converse(struct peer *peer)
{
	struct pollfd ready[] = {{.fd = STDIN_FILENO, .events = POLLIN},
				 {.fd = peer->id->recv_cq_channel->fd, .events = POLLIN}};
	char line[TEXT_SIZE + 64];

	setvbuf(stdin, NULL, _IONBF, 0); /* poll(2) does not see what stdio has read ahead */
	for (;;) {
		struct ibv_cq *cq;
		void *context;

		if (ibv_req_notify_cq(peer->id->recv_cq, 0) || heed_server(peer, 0) || poll(ready, 2, -1) < 0)
			return -1;
		if (ready[1].revents && !ibv_get_cq_event(peer->id->recv_cq_channel, &cq, &context)) {
			ibv_ack_cq_events(cq, 1);
			if (heed_server(peer, 0))
				return -1;
		}
		if (ready[0].revents) {
			if (!fgets(line, sizeof(line), stdin))
				return 0;
			if (command(peer, line))
				return -1;
		}
	}
}

static int be_peer(const char *address, const char *port)
{
	struct rdma_addrinfo *found = look_up(address, port, 0);
	struct ibv_qp_init_attr attributes;
	struct peer peer = {0};
	int failed;

	queue_sizes(&attributes);
	if (!found)
		return -1;
	if (rdma_create_ep(&peer.id, found, NULL, &attributes))
		return fail(address);
	peer.messages_mr = rdma_reg_msgs(peer.id, peer.messages, sizeof(peer.messages));
	peer.text_mr = rdma_reg_msgs(peer.id, peer.text, sizeof(peer.text));
	if (!peer.messages_mr || !peer.text_mr)
		return fail("ibv_reg_mr");
	for (struct region *message = peer.messages; message < peer.messages + MESSAGES; message++)
		if (rdma_post_recv(peer.id, message, message, sizeof(*message), peer.messages_mr))
			return fail("rdma_post_recv");
	if (rdma_connect(peer.id, &connection))
		return fail("connect");
	failed = converse(&peer);
	rdma_disconnect(peer.id);
	return failed;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0); /* a reader of the output in a pipe sees each step at once */
	if (argc != 2 && argc != 3) {
		fputs("usage: rdma_peer ADDRESS [PORT]   then lines \"write OFFSET TEXT\" or \"read OFFSET LENGTH\" (bytes)\n",
		      stderr);
		return 2;
	}
	return be_peer(argv[1], argc > 2 ? argv[2] : PORT) ? 1 : 0;
}
