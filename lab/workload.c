/* What a guest does while it is watched: workload REGION_MIB PAGES_PER_S WHOLE_PERCENT
 *
 * Fills a region with text, then rewrites pages of it at random: of WHOLE_PERCENT of them the whole page with other
 * text, of the others 128 bytes, as a database does. Prints nothing; lives until it is killed.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/mman.h>

#define PAGE 4096
#define TICK_NS 20000000L

static uint64_t state = 88172645463325252ULL;
static uint32_t next_random(void) {
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static const char *words[] = {
    "migration ", "session ", "the ", "of ", "page ", "0x00000000 ", "error: ", "INFO ", "request ", "select ",
    "from ", "where ", "value=", "{\"id\": ", "\"name\": ", "127.0.0.1 ", "GET /index.html ", "\n", "true, ", "null, ",
};
#define WORDS (sizeof words / sizeof *words)

static void text(char *to, int length) {
    int at = 0;
    while (at < length) {
        char number[16];
        const char *word = words[next_random() % WORDS];
        if (next_random() % 4 == 0) { snprintf(number, sizeof number, "%u ", next_random()); word = number; }
        int n = (int)strlen(word);
        if (n > length - at) n = length - at;
        memcpy(to + at, word, n);
        at += n;
    }
}

int main(int argc, char **argv) {
    if (argc != 4) { fprintf(stderr, "usage: workload REGION_MIB PAGES_PER_S WHOLE_PERCENT\n"); return 2; }
    long pages = atol(argv[1]) * 1024 * 1024 / PAGE, rate = atol(argv[2]), whole = atol(argv[3]);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    state ^= (uint64_t)now.tv_nsec << 20 ^ (uint64_t)now.tv_sec;
    char *region = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region == MAP_FAILED) { perror("mmap"); return 1; }
    for (long i = 0; i < pages; i++) text(region + i * PAGE, PAGE);
    double owed = 0;
    struct timespec last;
    clock_gettime(CLOCK_MONOTONIC, &last);
    for (;;) {
        struct timespec pause = {0, TICK_NS};
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
        owed += rate * ((now.tv_sec - last.tv_sec) + (now.tv_nsec - last.tv_nsec) / 1e9);
        last = now;
        if (owed > rate) owed = rate; /* a guest that stood still does not catch up */
        for (; owed >= 1; owed--) {
            char *page = region + (next_random() % pages) * PAGE;
            if (next_random() % 100 < (uint32_t)whole) text(page, PAGE);
            else text(page + (next_random() % (PAGE / 128)) * 128, 128);
        }
    }
}
