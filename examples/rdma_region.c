/* SPDX-License-Identifier: MIT */
/*
 * rdma_region - let a peer read and write a file by RDMA, and let go of it in order when the file is to be truncated.
 *
 *   cc -o rdma_region rdma_region.c -lrdmacm -libverbs          (Debian: gcc libc6-dev librdmacm-dev ibverbs-providers)
 *   ./rdma_region FILE ADDRESS     ADDRESS: of this machine, on an RDMA device; rdma_peer.c is the peer
 *   truncate -s 0 FILE             the peer is stopped, the region deregistered, the pin released
 *
 * What an adapter writes into pages that were taken from the file is lost, and its completion says success. So the file
 * is pinned before it is registered, and the pin released after ibv_dereg_mr(3). With a lease (the default) a truncate
 * waits meanwhile; then the file, if bytes are left, is registered again, and the peer gets the new key.
 * With --pin deny truncates fail instead, for transfers that cannot be stopped.
 *
 * The pin belongs to the process, because that ends after the kernel has taken the region back, also under SIGKILL.
 * A pin of an open file would go when the kernel closes that file, which may be before.
 *
 * Prints one line for each step. Exit code: 0 at SIGINT or SIGTERM, 1 on an error, 2 on wrong usage.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "rdma_region.h"

#define PIN "user.pinfs.pin.rdma_region"
#define RELEASE "user.pinfs.release.rdma_region"

static const char usage[] =
	"usage: rdma_region [OPTIONS] FILE ADDRESS [PORT]   let a peer that connects to ADDRESS use FILE\n"
	"\n"
	"  --pin lease|deny|none  at a truncate let go of FILE (lease, the default), or refuse it (deny)\n"
	"  --read-only            the peer may read FILE, and not write\n"
	"  --on-demand            pin no pages: the adapter looks them up (ODP); for files on DAX and on disks\n"
	"\n"
	"PORT is " PORT " unless given. SIGTERM ends it in order.\n";

struct server {
	const char *path, *pin; /* pin: lease, deny, none */
	int access;             /* of the region (ibv_reg_mr(3)) */
	int fd;                 /* the file */
	int signals;            /* signalfd(2) */
	struct rdma_event_channel *events;
	struct ibv_pd *pd;
	struct ibv_mr *mr; /* the file's region; NULL: not registered */
	struct rdma_cm_id *peer;
	struct ibv_mr *answer_mr;
	struct region answer;
	uint32_t stops; /* so far */
};

static int is_pinfs(int fd)
{
	return fgetxattr(fd, "user.pinfs.pins", NULL, 0) >= 0;
}

/* 1: pinned. 0: not now, a removal is under way. -1: an error, which has been printed. */
static int pin(struct server *server)
{
	char value[64];
	int length;

	if (!strcmp(server->pin, "none"))
		return 1;
	if (!is_pinfs(server->fd)) /* other file systems would store the attribute, and keep no promise */
		return say(server->path, "not a file of a pinfs mount (--pin none goes on without a pin)");
	length = snprintf(value, sizeof(value), "0:0,mode=%s,signal=%s,dirty=yes", server->pin,
			  strcmp(server->pin, "lease") ? "none" : "USR1");
	if (!fsetxattr(server->fd, PIN, value, (size_t)length, 0))
		return 1;
	return errno == EOPNOTSUPP ? 0 : fail(PIN); /* setxattr(2) makes that of EAGAIN */
}

/* By getxattr: while a truncate of this file waits, the kernel holds back every removexattr. */
static int unpin(struct server *server)
{
	char answer[64];

	if (strcmp(server->pin, "none") && fgetxattr(server->fd, RELEASE, answer, sizeof(answer)) < 0)
		return fail(RELEASE);
	return 0;
}

static int refused(struct server *server)
{
	int number = errno, on_demand = server->access & IBV_ACCESS_ON_DEMAND;

	fail("ibv_reg_mr");
	if (number == EFAULT)
		fputs("The kernel pins no pages for writing on disks, and on mounts without passthrough. tmpfs allows it, and "
		      "--on-demand does without, where kernel and adapter can.\n", stderr);
	else if (number == EOPNOTSUPP && on_demand)
		fputs("This kernel, or this adapter, does not look up pages on demand.\n", stderr);
	else if (number == EOPNOTSUPP)
		fputs("The kernel pins no pages on DAX. --on-demand does without, where kernel and adapter can.\n", stderr);
	else if (number == ENOMEM)
		fputs("More than this process may lock (ulimit -l).\n", stderr);
	return -1;
}

/* Tell the peer, without waiting: it may be gone. */
static void tell(struct server *server, const struct region *region)
{
	struct ibv_wc wc;

	if (!server->peer)
		return;
	while (ibv_poll_cq(server->peer->send_cq, 1, &wc) > 0)
		;
	rdma_post_send(server->peer, NULL, (void *)region, sizeof(*region), NULL, MESSAGE_FLAGS);
}

static void offer(struct server *server)
{
	struct region region = {0};

	if (!server->mr)
		return;
	region.address = (uintptr_t)server->mr->addr;
	region.length = server->mr->length;
	region.key = server->mr->rkey;
	tell(server, &region);
}

static int map_and_register(struct server *server, size_t length)
{
	int writes = server->access & IBV_ACCESS_REMOTE_WRITE;
	void *memory = mmap(NULL, length, writes ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, server->fd, 0);

	if (memory == MAP_FAILED)
		return fail("mmap");
	server->mr = ibv_reg_mr(server->pd, memory, length, server->access);
	if (!server->mr) {
		refused(server);
		munmap(memory, length);
		return -1;
	}
	printf("registered: %zu bytes%s\n", length, server->access & IBV_ACCESS_ON_DEMAND ? ", on demand" : "");
	offer(server);
	return 1;
}

/* Pin first, then look at the size: from then on the file cannot shrink before a break. 1, 0 or -1 as above. */
static int hold(struct server *server)
{
	struct stat st;
	int done;

	if (fstat(server->fd, &st) < 0)
		return fail(server->path);
	if (!st.st_size)
		return 0;
	if ((done = pin(server)) <= 0)
		return done;
	if (fstat(server->fd, &st) < 0)
		done = fail(server->path);
	else
		done = st.st_size ? map_and_register(server, (size_t)st.st_size) : 0;
	if (done <= 0)
		unpin(server);
	return done;
}

static int await_answer(struct server *server)
{
	return rdma_post_recv(server->peer, NULL, &server->answer, sizeof(server->answer), server->answer_mr);
}

/* Have the peer stop, so that nothing that it has begun is lost and the connection lasts. */
static void stop_peer(struct server *server)
{
	struct region stop = {.stop = ++server->stops};
	uint32_t answered;
	struct ibv_wc wc;

	if (!server->peer)
		return;
	tell(server, &stop);
	do {
		if (completion(server->peer->recv_cq, &wc, STOP_LIMIT_MS) != IBV_WC_SUCCESS) {
			printf("the peer has not stopped: what it still writes will fail\n");
			return;
		}
		answered = server->answer.stop;
	} while (!await_answer(server) && answered != stop.stop);
	printf("the peer has stopped\n");
}

/* The order matters: first the peer, then the region, the mapping, and last the pin. */
static int let_go(struct server *server)
{
	void *memory = server->mr->addr;
	size_t length = server->mr->length;

	stop_peer(server);
	if ((errno = ibv_dereg_mr(server->mr)))
		return fail("ibv_dereg_mr"); /* the adapter may still write: the pin stays */
	server->mr = NULL;
	munmap(memory, length);
	printf("deregistered\n");
	if (unpin(server))
		return -1;
	if (strcmp(server->pin, "none"))
		printf("released\n");
	return 0;
}

static void drop_peer(struct server *server)
{
	rdma_disconnect(server->peer);
	rdma_dereg_mr(server->answer_mr);
	rdma_destroy_qp(server->peer);
	rdma_destroy_id(server->peer);
	server->peer = NULL;
}

static int accept_peer(struct server *server, struct rdma_cm_id *id)
{
	struct ibv_qp_init_attr attributes;

	queue_sizes(&attributes);
	if (rdma_create_qp(id, server->pd, &attributes))
		return fail("rdma_create_qp");
	server->peer = id;
	server->answer_mr = rdma_reg_msgs(id, &server->answer, sizeof(server->answer));
	if (!server->answer_mr || await_answer(server))
		return fail("rdma_post_recv");
	return rdma_accept(id, &connection) ? fail("rdma_accept") : 0;
}

static int heed_connections(struct server *server)
{
	struct rdma_cm_event *event;
	enum rdma_cm_event_type type;
	struct rdma_cm_id *id;

	if (rdma_get_cm_event(server->events, &event))
		return fail("rdma_get_cm_event");
	type = event->event;
	id = event->id;
	rdma_ack_cm_event(event);
	if (type == RDMA_CM_EVENT_CONNECT_REQUEST && server->peer)
		return rdma_reject(id, NULL, 0) || rdma_destroy_id(id) ? fail("rdma_reject") : 0;
	if (type == RDMA_CM_EVENT_CONNECT_REQUEST)
		return accept_peer(server, id);
	if (type == RDMA_CM_EVENT_ESTABLISHED) {
		printf("a peer is connected\n");
		offer(server);
	} else if (id == server->peer && (type == RDMA_CM_EVENT_DISCONNECTED || type == RDMA_CM_EVENT_CONNECT_ERROR)) {
		printf("the peer is gone\n");
		drop_peer(server);
	}
	return 0;
}

/* 1: go on. 0: end. -1: an error. */
static int heed_signals(struct server *server)
{
	struct signalfd_siginfo signal;

	if (read(server->signals, &signal, sizeof(signal)) != sizeof(signal))
		return fail("signalfd");
	if (signal.ssi_signo != SIGUSR1)
		return 0;
	if (!server->mr)
		return 1;
	printf("breaking: a removal waits for this file\n");
	return let_go(server) ? -1 : 1;
}

static int serve(struct server *server)
{
	struct pollfd ready[] = {{.fd = server->signals, .events = POLLIN},
				 {.fd = server->events->fd, .events = POLLIN}};
	int waits = 0, on = 1;

	while (on > 0) {
		if (!server->mr && hold(server) < 0)
			return -1;
		if (!server->mr && !waits)
			printf("waiting until the file has bytes that can be pinned\n");
		waits = !server->mr;
		if (poll(ready, 2, waits ? RETRY_MS : -1) < 0)
			return fail("poll");
		if (ready[1].revents && heed_connections(server))
			return -1;
		if (ready[0].revents)
			on = heed_signals(server);
	}
	return on < 0 ? -1 : server->mr ? let_go(server) : 0;
}

static int block_signals(void)
{
	sigset_t wanted;

	sigemptyset(&wanted);
	sigaddset(&wanted, SIGUSR1); /* a break */
	sigaddset(&wanted, SIGINT);
	sigaddset(&wanted, SIGTERM);
	sigprocmask(SIG_BLOCK, &wanted, NULL);
	return signalfd(-1, &wanted, SFD_CLOEXEC);
}

static int serve_file(struct server *server, const char *address, const char *port)
{
	int writes = server->access & IBV_ACCESS_REMOTE_WRITE;
	struct rdma_addrinfo *own = look_up(address, port, RAI_PASSIVE);
	struct rdma_cm_id *listener;

	if (!own)
		return -1;
	server->fd = open(server->path, (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	if (server->fd < 0)
		return fail(server->path);
	server->signals = block_signals();
	server->events = rdma_create_event_channel();
	if (server->signals < 0 || !server->events)
		return fail("the RDMA connection manager");
	if (rdma_create_id(server->events, &listener, NULL, RDMA_PS_TCP) || rdma_bind_addr(listener, own->ai_src_addr))
		return fail(address);
	if (!listener->verbs)
		return say(address, "an address of one RDMA device is needed");
	server->pd = ibv_alloc_pd(listener->verbs);
	if (!server->pd || rdma_listen(listener, 1))
		return fail(address);
	return serve(server);
}

static int parse(struct server *server, int argc, char **argv)
{
	static const struct option options[] = {
		{"pin", required_argument, NULL, 'p'},
		{"read-only", no_argument, NULL, 'r'},
		{"on-demand", no_argument, NULL, 'o'},
		{0},
	};
	int option, on_demand = 0;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'p')
			server->pin = optarg;
		else if (option == 'r')
			server->access = IBV_ACCESS_REMOTE_READ;
		else if (option == 'o')
			on_demand = IBV_ACCESS_ON_DEMAND;
		else
			return -1;
	}
	server->access |= on_demand;
	if (strcmp(server->pin, "lease") && strcmp(server->pin, "deny") && strcmp(server->pin, "none"))
		return -1;
	return argc - optind == 2 || argc - optind == 3 ? 0 : -1;
}

int main(int argc, char **argv)
{
	struct server server = {
		.pin = "lease",
		.access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
	};

	setvbuf(stdout, NULL, _IOLBF, 0); /* a reader of the output in a pipe sees each step at once */
	if (parse(&server, argc, argv)) {
		fputs(usage, stderr);
		return 2;
	}
	server.path = argv[optind];
	return serve_file(&server, argv[optind + 1], argc - optind == 3 ? argv[optind + 2] : PORT) ? 1 : 0;
}
