/* The link of the lab: two network namespaces, a TUN device in each, and what lies between them.
 *
 *   emulator link LOG FLOWS LEFT RIGHT PRIORITY SEED
 *       Makes both namespaces and their devices (addresses LEFT and RIGHT of one /24), prints "ready PID FD FD" with the
 *       descriptors that hold the namespaces, and carries packets until standard input ends. A line of that is an order:
 *       WAY RATE_BPS DELAY_US QUEUE_BYTES LOSS JITTER_US, way 0 from left to right and 1 back, rate 0 for no limit. At
 *       the end it writes a record of each packet to LOG, the flows they are of to FLOWS, and a JSON line about itself
 *       to standard output.
 *   emulator enter NAMESPACE PARENT PRIORITY COMMAND...
 *       Becomes the command within that namespace (a path); it is killed when process PARENT ends.
 *
 * Priorities are those of SCHED_FIFO (link) and SCHED_RR (enter), 0 for none. The namespaces have no name: they end with
 * the processes in them and this one's descriptors, however these end, and the devices with them.
 *
 * A packet that arrives is dropped by chance, or because the queue is full, or it gets the time at which its
 * transmission ends at the link's rate (bytes of IP), and is written to the other device one delay later. These times
 * are computed and not slept for, so that the rate is exact; a late wake-up delays what is due by itself only, and is
 * reported. TUN devices without virtio headers take no offloads: what kernel and UDP GSO send arrives here packet by
 * packet, and nothing is merged on the other side. The devices' own queues are emptied at once.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PASSED, TAIL_DROPPED, LOST };
enum { DEVICE_QUEUE_PACKETS = 10000, MTU = 1500, MAX_FLOWS = 65535, READS_IN_A_TURN = 64 };

struct record { uint64_t at_ns; uint32_t wait_us; uint16_t size, flow; uint8_t way, fate, pad[6]; };
struct packet { uint64_t due_ns, order; int size; unsigned char bytes[]; };
struct way {
    int out;
    double ns_per_byte, loss, queue_bytes;
    uint64_t free_ns, delay_ns, jitter_ns, last_due_ns;
    struct packet **heap;
    int count, room;
};

static struct way ways[2];
static struct record *records;
static size_t record_count, record_room;
static uint64_t keys[MAX_FLOWS + 1];
static int key_count;
static uint64_t order, late_max_ns, late_sum_ns, late_count, late_1ms, late_5ms, device_drops;

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void *grown(void *old, size_t bytes) {
    void *memory = realloc(old, bytes);
    if (!memory) fail("memory");
    return memory;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void set_priority(int policy, int priority) {
    struct sched_param wanted = {.sched_priority = priority};
    if (priority && sched_setscheduler(0, policy, &wanted)) fail("real-time priority");
}

/* A setting that not every kernel has, or lets a container change. */
static void try_setting(const char *path, const char *value) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (write(fd, value, strlen(value)) < 0) perror(path);
    close(fd);
}

static void configure(int control, const char *name, const char *address, const char *mask) {
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;
    if (address) {
        in->sin_family = AF_INET;
        inet_pton(AF_INET, address, &in->sin_addr);
        if (ioctl(control, SIOCSIFADDR, &request)) fail("SIOCSIFADDR");
        inet_pton(AF_INET, mask, &in->sin_addr);
        if (ioctl(control, SIOCSIFNETMASK, &request)) fail("SIOCSIFNETMASK");
        memset(&request.ifr_ifru, 0, sizeof request.ifr_ifru);
        request.ifr_mtu = MTU;
        if (ioctl(control, SIOCSIFMTU, &request)) fail("SIOCSIFMTU");
        request.ifr_qlen = DEVICE_QUEUE_PACKETS;
        if (ioctl(control, SIOCSIFTXQLEN, &request)) fail("SIOCSIFTXQLEN");
    }
    memset(&request.ifr_ifru, 0, sizeof request.ifr_ifru);
    request.ifr_flags = IFF_UP;
    if (ioctl(control, SIOCSIFFLAGS, &request)) fail("SIOCSIFFLAGS");
}

/* This process's namespace is another one afterwards; the descriptor that holds it is *holder. Returns the device. */
static int make_side(const char *address, int *holder) {
    if (unshare(CLONE_NEWNET)) fail("unshare");
    *holder = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (*holder < 0) fail("/proc/thread-self/ns/net");
    try_setting("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    try_setting("/proc/sys/net/ipv4/tcp_no_metrics_save", "1");
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strcpy(request.ifr_name, "link");
    if (device < 0 || ioctl(device, TUNSETIFF, &request)) fail("/dev/net/tun");
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (control < 0) fail("socket");
    configure(control, "lo", NULL, NULL);
    configure(control, "link", address, "255.255.255.0");
    close(control);
    return device;
}

/* Protocol, port on the left, port on the right. */
static int flow_of(const unsigned char *ip, int size, int way) {
    uint64_t left = 0, right = 0;
    if (size < 20 || ip[0] >> 4 != 4) return 0;
    int header = (ip[0] & 15) * 4;
    if ((ip[9] == IPPROTO_TCP || ip[9] == IPPROTO_UDP) && size >= header + 4) {
        uint64_t from = ip[header] << 8 | ip[header + 1], to = ip[header + 2] << 8 | ip[header + 3];
        left = way ? to : from, right = way ? from : to;
    }
    uint64_t key = (uint64_t)ip[9] << 32 | left << 16 | right;
    for (int i = 0; i < key_count; i++) if (keys[i] == key) return i;
    if (key_count == MAX_FLOWS) return MAX_FLOWS;
    keys[key_count] = key;
    return key_count++;
}

static int is_before(const struct packet *a, const struct packet *b) {
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->order < b->order;
}

static void push(struct way *w, struct packet *p) {
    if (w->count == w->room) w->heap = grown(w->heap, (w->room = 2 * w->room + 64) * sizeof *w->heap);
    int i = w->count++;
    for (; i && is_before(p, w->heap[(i - 1) / 2]); i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = p;
}

static struct packet *pop(struct way *w) {
    struct packet *first = w->heap[0], *last = w->heap[--w->count];
    int i = 0, child;
    for (; (child = 2 * i + 1) < w->count; i = child) {
        if (child + 1 < w->count && is_before(w->heap[child + 1], w->heap[child])) child++;
        if (!is_before(w->heap[child], last)) break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return first;
}

static void arrive(int number, const unsigned char *bytes, int size) {
    struct way *w = &ways[number];
    uint64_t now = now_ns(), wait_ns = w->free_ns > now ? w->free_ns - now : 0;
    if (record_count == record_room)
        records = grown(records, (record_room = 2 * record_room + 65536) * sizeof *records);
    struct record *r = &records[record_count++];
    *r = (struct record){now, wait_ns / 1000, size, flow_of(bytes, size, number), number, PASSED, {0}};
    if (w->loss && drand48() < w->loss) { r->fate = LOST; return; }
    /* What waits is what the transmitter still needs this time for. */
    if (w->ns_per_byte && wait_ns / w->ns_per_byte + size > w->queue_bytes) { r->fate = TAIL_DROPPED; return; }
    w->free_ns = now + wait_ns + (uint64_t)(size * w->ns_per_byte);
    struct packet *p = grown(NULL, sizeof *p + size);
    p->due_ns = w->free_ns + w->delay_ns;
    if (w->jitter_ns) {
        p->due_ns += drand48() * w->jitter_ns;
        if (p->due_ns < w->last_due_ns) p->due_ns = w->last_due_ns;
        w->last_due_ns = p->due_ns;
    }
    p->order = order++;
    p->size = size;
    memcpy(p->bytes, bytes, size);
    push(w, p);
}

static void deliver(struct way *w) {
    uint64_t now = now_ns();
    while (w->count && w->heap[0]->due_ns <= now) {
        struct packet *p = pop(w);
        uint64_t late = now - p->due_ns;
        late_sum_ns += late, late_count++;
        late_1ms += late > 1000000, late_5ms += late > 5000000;
        if (late > late_max_ns) late_max_ns = late;
        if (write(w->out, p->bytes, p->size) != p->size) device_drops++;
        free(p);
    }
}

/* Returns 0 at the end of standard input. */
static int obey(void) {
    static char text[65536];
    static size_t have;
    ssize_t got = read(0, text + have, sizeof text - 1 - have);
    if (got <= 0) return 0;
    have += got;
    text[have] = 0;
    char *line = text, *end;
    for (; (end = strchr(line, '\n')); line = end + 1) {
        int number;
        double rate, delay, queue, loss, jitter;
        if (sscanf(line, "%d %lf %lf %lf %lf %lf", &number, &rate, &delay, &queue, &loss, &jitter) != 6 || number & ~1)
            exit(2);
        struct way *w = &ways[number];
        w->ns_per_byte = rate ? 8e9 / rate : 0;
        w->delay_ns = delay * 1000, w->queue_bytes = queue, w->loss = loss, w->jitter_ns = jitter * 1000;
        w->last_due_ns = 0;
    }
    memmove(text, line, have -= line - text);
    return 1;
}

static void carry(const int in[2]) {
    static unsigned char bytes[65536];
    for (;;) {
        uint64_t next = ~0ull, now = now_ns();
        for (int i = 0; i < 2; i++) if (ways[i].count && ways[i].heap[0]->due_ns < next) next = ways[i].heap[0]->due_ns;
        uint64_t wait = next > now ? next - now : 0;
        struct timespec timeout = {wait / 1000000000, wait % 1000000000};
        struct pollfd fds[3] = {{in[0], POLLIN, 0}, {in[1], POLLIN, 0}, {0, POLLIN, 0}};
        if (ppoll(fds, 3, next == ~0ull ? NULL : &timeout, NULL) < 0) {
            if (errno == EINTR) continue;
            fail("ppoll");
        }
        for (int i = 0; i < 2; i++) {
            int size;
            if (fds[i].revents)
                for (int n = 0; n < READS_IN_A_TURN && (size = read(in[i], bytes, sizeof bytes)) > 0; n++)
                    arrive(i, bytes, size);
            deliver(&ways[i]);
        }
        if (fds[2].revents && !obey()) return;
    }
}

static int be_the_link(char **argv) {
    int holders[2], in[2] = {make_side(argv[4], &holders[0]), make_side(argv[5], &holders[1])};
    ways[0].out = in[1], ways[1].out = in[0];
    set_priority(SCHED_FIFO, atoi(argv[6]));
    srand48(atol(argv[7]));
    printf("ready %d %d %d\n", (int)getpid(), holders[0], holders[1]);
    fflush(stdout);
    carry(in);
    FILE *log = fopen(argv[2], "wb"), *flows = fopen(argv[3], "w");
    if (!log || !flows) fail("log");
    if (fwrite(records, sizeof *records, record_count, log) != record_count || fclose(log)) fail(argv[2]);
    for (int i = 0; i < key_count; i++)
        fprintf(flows, "%d %d %d\n", (int)(keys[i] >> 32), (int)(keys[i] >> 16 & 0xffff), (int)(keys[i] & 0xffff));
    fclose(flows);
    double count = late_count ? late_count : 1;
    printf("{\"packets\": %llu, \"late_mean_us\": %.1f, \"late_max_us\": %.1f, \"late_over_1ms\": %.5f, "
           "\"late_over_5ms\": %.5f, \"device_drops\": %llu}\n",
           (unsigned long long)late_count, late_sum_ns / count / 1e3, late_max_ns / 1e3, late_1ms / count,
           late_5ms / count, (unsigned long long)device_drops);
    return 0;
}

static int enter(char **argv) {
    int namespace = open(argv[2], O_RDONLY | O_CLOEXEC);
    if (namespace < 0 || setns(namespace, CLONE_NEWNET)) fail(argv[2]);
    set_priority(SCHED_RR, atoi(argv[4]));
    if (prctl(PR_SET_PDEATHSIG, SIGKILL)) fail("prctl");
    if (getppid() != atoi(argv[3])) return 1;
    execvp(argv[5], argv + 5);
    fail(argv[5]);
    return 1;
}

int main(int argc, char **argv) {
    if (argc == 8 && !strcmp(argv[1], "link")) return be_the_link(argv);
    if (argc > 5 && !strcmp(argv[1], "enter")) return enter(argv);
    fputs("usage: emulator link LOG FLOWS LEFT RIGHT PRIORITY SEED | enter NAMESPACE PARENT PRIORITY COMMAND...\n", stderr);
    return 2;
}
