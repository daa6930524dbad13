/* A WAN between two network namespaces: a TUN device in each, and between them rate, delay, loss and a bounded queue.
 *
 *   wan NETNS_A NETNS_B DEVICE RATE_BIT_PER_S ONE_WAY_DELAY_US LOSS_PPM QUEUE_BYTES SEED
 *
 * NETNS_x are paths such as /run/netns/x. Prints "ready" once both devices exist. Each direction is one FIFO: a packet
 * leaves when the link has sent all before it, and arrives one delay later; what does not fit the queue is dropped.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS = 16384, PACKET_MAX = 2048, BURST = 64 };

struct packet {
    int64_t due_ns;
    int length;
    unsigned char data[PACKET_MAX];
};

struct direction {
    int in, out;
    int64_t link_free_ns;
    unsigned head, tail;
    struct packet *ring;
};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int open_tun(const char *netns, const char *name) {
    int ns = open(netns, O_RDONLY);
    if (ns < 0 || setns(ns, CLONE_NEWNET) < 0) die(netns);
    close(ns);
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (fd < 0) die("/dev/net/tun");
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, TUNSETIFF, &request) < 0) die(name);
    return fd;
}

static uint64_t random_state;

static uint32_t random_u32(void) { /* xorshift64* */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 2685821657736338717ULL) >> 32);
}

int main(int argc, char **argv) {
    if (argc != 9) {
        fprintf(stderr, "usage: wan NETNS_A NETNS_B DEVICE RATE DELAY_US LOSS_PPM QUEUE_BYTES SEED\n");
        return 2;
    }
    double ns_per_byte = 8e9 / atof(argv[4]);
    int64_t delay_ns = atoll(argv[5]) * 1000;
    uint32_t loss_limit = (uint32_t)(atof(argv[6]) / 1e6 * 4294967295.0);
    int64_t queue_ns = (int64_t)(atof(argv[7]) * ns_per_byte);
    random_state = strtoull(argv[8], NULL, 10) * 2 + 1;
    int a = open_tun(argv[1], argv[3]), b = open_tun(argv[2], argv[3]);
    struct direction directions[2] = {{.in = a, .out = b}, {.in = b, .out = a}};
    for (int i = 0; i < 2; i++)
        if (!(directions[i].ring = calloc(SLOTS, sizeof(struct packet)))) die("calloc");
    prctl(PR_SET_TIMERSLACK, 1000);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int64_t now = now_ns(), next = now + 1000000000LL;
        for (int i = 0; i < 2; i++) {
            struct direction *d = &directions[i];
            for (int n = 0; n < BURST; n++) {
                struct packet *p = &d->ring[d->head % SLOTS];
                int length = read(d->in, p->data, PACKET_MAX);
                if (length <= 0) {
                    if (length < 0 && errno != EAGAIN && errno != EIO && errno != EINTR) die("read");
                    break;
                }
                int64_t start = d->link_free_ns > now ? d->link_free_ns : now;
                if (start - now > queue_ns || d->head - d->tail >= SLOTS - 1) continue;
                d->link_free_ns = start + (int64_t)(length * ns_per_byte);
                if (loss_limit && random_u32() < loss_limit) continue; /* lost after it used the link */
                p->length = length;
                p->due_ns = d->link_free_ns + delay_ns;
                d->head++;
            }
            while (d->tail != d->head) {
                struct packet *p = &d->ring[d->tail % SLOTS];
                if (p->due_ns > now) {
                    if (p->due_ns < next) next = p->due_ns;
                    break;
                }
                /* A device that is down takes nothing: the packet is lost, as on a cut line. */
                if (write(d->out, p->data, p->length) < 0 && errno == EINTR) continue;
                d->tail++;
            }
        }
        int64_t left = next - now_ns();
        if (left < 0) left = 0;
        struct timespec timeout = {left / 1000000000LL, left % 1000000000LL};
        struct pollfd fds[2] = {{.fd = a, .events = POLLIN}, {.fd = b, .events = POLLIN}};
        if (ppoll(fds, 2, &timeout, NULL) < 0 && errno != EINTR) die("ppoll");
    }
}
