/* client SOCKET PLACE COUNT MODE: a whole client, written after docs/reference/protocol.md and nothing else.
 * It probes PLACE in the only target in MODE sync or notify, prints "ready", sums the register rdi of COUNT hits, and
 * prints "hits=N sum=S broker=M": what it got, and what the broker has counted. Exit status 1: the broker refused. */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

struct value { char kind; uint64_t number; const uint8_t *at; }; /* number: or how many bytes, items, entries */
struct reader { const uint8_t *at, *end; };

static int control, channel = -1; /* the two connections; by the channel come hits whose threads wait for an answer */
static uint8_t out[1 << 16];      /* the message that is being written, its length in front */
static size_t used = 4;
static uint64_t hits, dropped, sum, rdi; /* rdi: which word of a hit it is */

static void die(const char *text, int size) { fprintf(stderr, "client: %.*s\n", size, text), exit(1); } /* -1: all */

/* Writing. A number or length always takes its widest form, which every reader of MessagePack knows too. */
static void put(int first, uint64_t number, int width, const void *bytes, size_t size) {
    out[used++] = first;
    while (width--)
        out[used++] = number >> 8 * width;
    memcpy(out + used, bytes, size);
    used += size;
}
static void put_array(int items) { put(0x90 + items, 0, 0, "", 0); }
static void put_nil(void) { put(0xc0, 0, 0, "", 0); }
static void put_number(uint64_t number) { put(0xcf, number, 8, "", 0); }
static void put_text(const char *text) { put(0xdb, strlen(text), 4, text, strlen(text)); }
static void put_handle(const uint8_t *handle) { put(0xc4, 16, 1, handle, 16); }
static void put_call(int id, int items, const char *tag) { /* an Ask; of its call more fields follow */
    put_array(3), put_text("ask"), put_number(id), put_array(items), put_text(tag);
}
static void finish(int connection) {
    out[0] = used - 4, out[1] = (used - 4) >> 8; /* little-endian, unlike all that follows; ours need no more than 2 */
    if (send(connection, out, used, MSG_NOSIGNAL) != (ssize_t)used)
        die("the broker is gone", -1);
    used = 4;
}

/* Reading takes one value off the front; what is in an array or map comes off next. */
static const uint8_t *take(struct reader *from, uint64_t size) {
    if (size > (uint64_t)(from->end - from->at))
        die("a message is cut short", -1);
    return (from->at += size) - size;
}
static struct value next(struct reader *from) {
    /* By first byte from 0xc0 on: scalar, bytes (str, bin), array, map, -: no broker sends that; width of the number */
    static const char kinds[] = "s-ssbbb---ssssssssss-----bbbaamm", widths[] = "00001240004812481248000001242424";
    uint8_t first = *take(from, 1);
    struct value v = {'s', first, NULL};
    if (first >= 0xc0 && first <= 0xdf) {
        const uint8_t *byte = take(from, widths[first - 0xc0] - '0');
        for (v.kind = kinds[first - 0xc0], v.number = 0; byte < from->at; byte++)
            v.number = v.number << 8 | *byte;
    } else if (first >= 0x80 && first <= 0xbf) /* the short forms have their number in the same byte */
        v.kind = first <= 0x8f ? 'm' : first <= 0x9f ? 'a' : 'b', v.number = first & (v.kind == 'b' ? 31 : 15);
    v.at = take(from, v.kind == 'b' ? v.number : 0);
    return v;
}
static void skip(struct reader *from, uint64_t values) {
    for (struct value v; values--; values += v.kind == 'a' ? v.number : v.kind == 'm' ? 2 * v.number : 0)
        v = next(from);
}
static int is(struct value v, const char *text) {
    return v.kind == 'b' && v.number == strlen(text) && !memcmp(v.at, text, v.number);
}
static void next_handle(struct reader *from, uint8_t *handle) {
    struct value v = next(from);
    memcpy(handle, v.at, v.kind == 'b' && v.number == 16 ? 16 : 0);
}
static void count_hit(struct value registers) {
    uint64_t word = 0;
    for (int i = 8; i-- && registers.kind == 'b' && registers.number >= 8 * rdi + 8;) /* little-endian */
        word = word << 8 | registers.at[8 * rdi + i];
    sum += word, hits++;
}

/* Deal with one message, whoever sends it: a hit may come before a reply, and the reply wait for the hit's answer.
 * Returns whether it was a Welcome or Reply; the reader stands before what that brings then. */
static int serve(struct reader *from) {
    static uint8_t body[1 << 26], length[4];
    struct pollfd ready[] = {{control, POLLIN, 0}, {channel, POLLIN, 0}}; /* poll passes over -1 */
    poll(ready, 2, -1);
    int connection = ready[0].revents ? control : channel; /* where both have ended, control says why */
    int64_t size = recv(connection, length, 4, MSG_WAITALL) != 4; /* a 1 makes it too much */
    for (int i = 4; i--;)
        size = size << 8 | length[i];
    if (size > 1 << 26 || recv(connection, body, size, MSG_WAITALL) != size)
        die("the broker is gone, or sends too much", -1);
    *from = (struct reader){body, body + size};
    next(from); /* the array that every message is */
    struct value tag = next(from);
    if (is(tag, "hit")) {
        put_array(2), put_text("answer"), put_number(next(from).number); /* fields left out: no verdict, no registers */
        skip(from, 2), count_hit(next(from)), finish(channel);
    } else if (is(tag, "hits")) {
        for (uint64_t records = next(from).number; records; records--)
            next(from), skip(from, 3), count_hit(next(from));
        for (uint64_t leases = from->at < from->end ? next(from).number : 0; leases; leases--)
            skip(from, 1), dropped = next(from).number; /* so far, and we have one lease */
    } else if (is(tag, "failed") || is(tag, "refused") || is(tag, "evicted")) {
        if (is(tag, "failed"))
            skip(from, 1), next(from), skip(from, 1); /* the id, the Failure, its name */
        struct value message = next(from);
        die((const char *)message.at, message.number);
    } else if (is(tag, "reply"))
        skip(from, 1), next(from); /* the id, for we ask one thing at a time; the array that each value of ours is */
    return is(tag, "reply") || is(tag, "welcome");
}
static struct reader answer(int connection) {
    struct reader from;
    for (finish(connection); !serve(&from);) {}
    return from;
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct reader from;
    uint8_t token[16] = {0}, target[16] = {0}, client[16] = {0}, lease[16] = {0};
    if (argc != 5 || strlen(argv[1]) >= sizeof address.sun_path || strlen(argv[2]) > sizeof out / 2)
        die("usage: client SOCKET PLACE COUNT sync|notify", -1);
    strcpy(address.sun_path, argv[1]);
    for (int is_channel = 0; is_channel <= !strcmp(argv[4], "sync"); is_channel++) {
        int made = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(made, (struct sockaddr *)&address, sizeof address))
            die("nobody listens at SOCKET", -1);
        *(is_channel ? &channel : &control) = made;
        put_array(4), put_text("hello"), put_array(1), put_number(1), put_text("client.c");
        is_channel ? put_handle(token) : put_nil();
        from = answer(made), skip(&from, 3), next_handle(&from, token); /* behind version, software, pid */
    }
    put_call(1, 1, "join");
    from = answer(control), next_handle(&from, target), skip(&from, 2); /* behind pid, architecture: the registers */
    for (uint64_t names = next(&from).number; rdi < names && !is(next(&from), "rdi"); rdi++) {}
    put_call(2, 3, "open_client"), put_handle(target), put_text("c");
    from = answer(control), next_handle(&from, client);
    put_call(3, 4, "probe"), put_handle(client), put_text(argv[2]), put_text(argv[4]);
    from = answer(control), next_handle(&from, lease);
    puts("ready"), fflush(stdout);
    while (hits + dropped < strtoull(argv[3], NULL, 10))
        serve(&from);
    put_call(4, 2, "release"), put_array(1), put_handle(lease);
    from = answer(control), next(&from), skip(&from, 4); /* of the list its LeaseInfo, and what stands before hits */
    printf("hits=%" PRIu64 " sum=%" PRIu64 " broker=%" PRIu64 "\n", hits, sum, next(&from).number);
}
