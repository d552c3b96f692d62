/* An HTTP/1.1 load generator that costs little: one thread, epoll, keep-alive connections.
 *
 * loadgen HOST PORT CONNECTIONS SECONDS RATE SEED LATENCIES REQUEST...
 *
 * RATE 0: closed loop, every connection sends its next request when its answer is there. RATE > 0: open loop, Poisson
 * arrivals a second; the latency counts from the arrival, also where no connection was free. Each REQUEST is a file
 * with the bytes of one whole request; they are sent in turn. No request begins after SECONDS; those under
 * way are awaited, 60 s at most. LATENCIES gets one double (seconds) per answer of status 200; "seconds" of the result
 * is the time until the last of them. The result is one JSON object on stdout, with the CPU time that this process took.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct { char *data; size_t size; } Request;
typedef struct {
    int fd, busy;
    const Request *request;
    size_t sent;
    char *head;
    size_t head_size;
    long body_left; /* -1: the head is not complete */
    int status;
    double arrived;
} Connection;

enum { HEAD_LIMIT = 65536, BUFFER = 1 << 20 };
static char buffer[BUFFER];
static struct sockaddr_in address;
static int poller;
static long answers, errors, reconnects;
static FILE *latencies;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) { perror(what); exit(1); }

static void open_connection(Connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
}

static void want_write(Connection *c, int wanted) {
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

static void fail(Connection *c) {
    errors++;
    reconnects++;
    close(c->fd);
    c->busy = 0;
    open_connection(c);
}

static void push(Connection *c) {
    while (c->sent < c->request->size) {
        ssize_t n = send(c->fd, c->request->data + c->sent, c->request->size - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) { want_write(c, 1); return; }
        if (n <= 0) { fail(c); return; }
        c->sent += n;
    }
    want_write(c, 0);
}

static void start(Connection *c, const Request *request, double arrived) {
    c->busy = 1;
    c->request = request;
    c->sent = c->head_size = 0;
    c->body_left = -1;
    c->arrived = arrived;
    push(c);
}

/* Return 1 when the answer of this connection is complete. */
static int pull(Connection *c) {
    ssize_t n = recv(c->fd, buffer, BUFFER, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) { fail(c); return 0; }
    size_t from = 0;
    if (c->body_left < 0) {
        size_t take = (size_t)n < HEAD_LIMIT - c->head_size ? (size_t)n : HEAD_LIMIT - c->head_size;
        memcpy(c->head + c->head_size, buffer, take);
        c->head_size += take;
        c->head[c->head_size] = 0;
        char *end = memmem(c->head, c->head_size, "\r\n\r\n", 4);
        if (!end) {
            if (c->head_size == HEAD_LIMIT) fail(c);
            return 0;
        }
        c->status = atoi(c->head + 9);
        char *length = strcasestr(c->head, "\r\ncontent-length:");
        if (!length || length > end) { fail(c); return 0; }
        size_t head = end + 4 - c->head;
        from = head - (c->head_size - take);
        c->body_left = atol(length + 17);
    }
    c->body_left -= n - from;
    if (c->body_left > 0) return 0;
    if (c->body_left < 0) { fail(c); return 0; }
    c->busy = 0;
    return 1;
}

static uint64_t state;
static double uniform(void) { /* xorshift64*, in (0, 1] */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return ((state * 2685821657736338717ULL >> 11) + 1) * 0x1.0p-53;
}

static Request read_request(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    fseek(file, 0, SEEK_END);
    Request r = {.size = ftell(file)};
    rewind(file);
    r.data = malloc(r.size);
    if (fread(r.data, 1, r.size, file) != r.size) die(path);
    fclose(file);
    return r;
}

int main(int argc, char **argv) {
    if (argc < 9) {
        fprintf(stderr, "usage: loadgen HOST PORT CONNECTIONS SECONDS RATE SEED LATENCIES REQUEST...\n");
        return 2;
    }
    int count = atoi(argv[3]), requests = argc - 8;
    double seconds = atof(argv[4]), rate = atof(argv[5]);
    state = strtoull(argv[6], NULL, 10) * 2654435769ULL + 88172645463325252ULL;
    latencies = fopen(argv[7], "wb");
    if (!latencies) die(argv[7]);
    Request *all = calloc(requests, sizeof *all);
    for (int i = 0; i < requests; i++) all[i] = read_request(argv[8 + i]);
    address.sin_family = AF_INET;
    address.sin_port = htons(atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) die("HOST is an IPv4 address");
    poller = epoll_create1(0);
    Connection *connections = calloc(count, sizeof *connections);
    for (int i = 0; i < count; i++) {
        connections[i].head = malloc(HEAD_LIMIT + 1);
        open_connection(&connections[i]);
    }
    long turn = 0, refused = 0, waiting_from = 0, waiting_to = 0, capacity = 1 << 20;
    double *arrivals = malloc(capacity * sizeof *arrivals);
    double begin = now(), end = begin + seconds, last = begin, arrival = begin;
    if (rate > 0) arrival += -log(uniform()) / rate;
    struct epoll_event events[256];
    int busy = 0;
    for (;;) {
        double t = now();
        if (rate > 0)
            while (arrival <= t && arrival < end && waiting_to < capacity) {
                arrivals[waiting_to++] = arrival;
                arrival += -log(uniform()) / rate;
            }
        busy = 0;
        for (int i = 0; i < count; i++) {
            Connection *c = &connections[i];
            if (!c->busy && t < end && rate <= 0) start(c, &all[turn++ % requests], t);
            else if (!c->busy && waiting_from < waiting_to)
                start(c, &all[turn++ % requests], arrivals[waiting_from++]);
            busy += c->busy;
        }
        if (t >= end && !busy && waiting_from == waiting_to) break;
        if (t >= end + 60) break;
        double until = rate > 0 && arrival < end ? arrival - now() : 0.1;
        int wait_ms = until <= 0 ? 0 : until > 0.1 ? 100 : (int)(until * 1000);
        int n = epoll_wait(poller, events, 256, wait_ms);
        for (int i = 0; i < n; i++) {
            Connection *c = events[i].data.ptr;
            if ((events[i].events & EPOLLOUT) && c->busy) push(c);
            if (!(events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
            if (!c->busy) { fail(c); errors--; continue; } /* an idle connection was closed */
            if (!pull(c)) continue;
            double done = now(), took = done - c->arrived;
            if (c->status != 200) { refused++; continue; }
            answers++;
            last = done;
            fwrite(&took, sizeof took, 1, latencies);
        }
    }
    /* What was under way at the end counts, and so does its time: dropping it would favour servers that answer in turn. */
    double elapsed = (answers ? last : now()) - begin;
    fclose(latencies);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    printf("{\"answers\": %ld, \"refused\": %ld, \"errors\": %ld, \"seconds\": %.6f, \"cpu_s\": %.6f}\n", answers,
           refused, errors, elapsed, cpu);
    return 0;
}
