/* The sections of a record, and the model that it belongs to. */
#define _GNU_SOURCE
#include "record.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "gwq_maps.h"
#include "say.h"
#include "sha256.h"

enum { MOST_CTX = 1 << 24, MOST_VOCAB = 1 << 26, MOST_PROMPT = 1 << 20 };

void record_damaged(const struct record *r, const char *what) {
    die("%s is damaged (%s): record the model again with gwq-bench MODEL.gguf --record", r->path,
        what);
}

static int open_file(const char *path, const char *what, uint64_t *size) {
    struct stat found;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &found))
        die("%s cannot be opened (%s): give the path of %s", path, strerror(errno), what);
    if (!S_ISREG(found.st_mode) || found.st_size < 1)
        die("%s is no file, or empty: give the path of %s", path, what);
    *size = (uint64_t)found.st_size;
    return file;
}

struct mapped map_file(const char *path) {
    struct mapped m = {.path = path, .watched = -1};
    const int file = open_file(path, "a .gguf file", &m.size);
    m.bytes = mmap(NULL, m.size, PROT_READ, MAP_SHARED, file, 0);
    if (m.bytes == MAP_FAILED) die("%s cannot be mapped (%s)", path, strerror(errno));
    close(file);
    if (gwq_map_watch(m.bytes, m.size, &m.watched)) m.watched = -1;
    return m;
}

/* A section of `size` bytes for each of its things, within the file and where they are aligned */
static void *section(const struct record *r, const struct record_section *s, size_t size,
                     const char *what) {
    if (s->at % 64 || s->at > r->size || s->count > (r->size - s->at) / size)
        record_damaged(r, what);
    return (uint8_t *)r->head + s->at;
}

static int between(int64_t value, int64_t low, int64_t high) {
    return value >= low && value <= high;
}

/* Whether a text ends, and can be printed: nothing else than ASCII, but where `any` may be */
static int is_text(const char *text, size_t size, int any) {
    for (size_t i = 0; i < size; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (!c) return 1;
        if (c < ' ' || (c >= 0x7f && !any)) return 0;
    }
    return 0;
}

static void check_head(const struct record *r) {
    const struct record_head *h = r->head;
    if (memcmp(h->magic, RECORD_MAGIC, sizeof h->magic))
        die("%s is no recorded forward pass: make one with gwq-bench MODEL.gguf --record", r->path);
    if (memcmp(h->abi, gwq_abi(), sizeof h->abi))
        die("%s was recorded by another version of gwq-export: record the model again with the"
            " version that this program is from", r->path);
    if (!is_text(h->name, sizeof h->name, 1) || !is_text(h->type, sizeof h->type, 0) ||
        !is_text(h->isa, sizeof h->isa, 0) || !is_text(h->cache, sizeof h->cache, 0))
        record_damaged(r, "a name");
    if (h->params < 0 || h->context < 1 || h->token_bytes < 1 || !between(h->ctx, 2, MOST_CTX) ||
        !between(h->vocab, 1, MOST_VOCAB) || !between(h->batch, 1, MOST_PROMPT) ||
        h->memory_bytes > (uint64_t)1 << 46)
        record_damaged(r, "a number of its head");
}

static void check_passes(const struct record *r) {
    const struct record_head *h = r->head;
    int decodes = 0;
    for (uint64_t i = 0; i < h->passes.count; i++) {
        const struct record_pass *p = r->passes + i;
        if (!between(p->n, 1, h->batch) || !between(p->rows, 0, 1) || p->first < 0 ||
            p->count < 1 || (uint64_t)p->first > h->ops.count ||
            (uint64_t)p->count > h->ops.count - (uint64_t)p->first)
            record_damaged(r, "a pass");
        if (i && p->n > p[-1].n) record_damaged(r, "the order of the passes");
        /* ops belong to one pass: that is the one they are checked for */
        if ((uint64_t)p->first != (i ? (uint64_t)(p[-1].first + p[-1].count) : 0))
            record_damaged(r, "a pass");
        decodes |= p->n == 1 && p->rows;
    }
    if (!decodes) record_damaged(r, "no pass of one token");
    for (uint64_t i = 0; i < h->prompts.count; i++)
        if (!between(r->prompts[i], 1, h->ctx)) record_damaged(r, "the length of a prompt");
    if (h->ids.count != (uint64_t)h->ctx || !h->first.count ||
        !between(h->first_prompt, 1, h->ctx) ||
        h->first.count - 1 > (uint64_t)(h->ctx - h->first_prompt))
        record_damaged(r, "the token ids");
    for (int64_t i = 0; i < h->ctx; i++)
        if (!between(r->ids[i], 0, h->vocab - 1)) record_damaged(r, "a token id");
    for (uint64_t i = 0; i < h->first.count; i++)
        if (!between(r->first[i].id, 0, h->vocab - 1)) record_damaged(r, "a token id");
}

void record_read(struct record *r, const char *path) {
    memset(r, 0, sizeof *r);
    r->path = path;
    const int file = open_file(path, "what gwq-bench MODEL.gguf --record has written", &r->size);
    if (r->size < sizeof *r->head)
        die("%s is no recorded forward pass: make one with gwq-bench MODEL.gguf --record", path);
    r->head = allocate(r->size);
    for (uint64_t at = 0; at < r->size;) {
        const ssize_t got = read(file, (uint8_t *)r->head + at, r->size - at);
        if (got <= 0) die("%s cannot be read: copy it again", path);
        at += (uint64_t)got;
    }
    close(file);
    check_head(r);
    const struct record_head *h = r->head;
    r->constants = section(r, &h->constants, 1, "its constants");
    r->matrices = section(r, &h->matrices, sizeof *r->matrices, "its matrices");
    r->experts = section(r, &h->experts, sizeof *r->experts, "its experts");
    r->ops = section(r, &h->ops, sizeof *r->ops, "its operations");
    r->passes = section(r, &h->passes, sizeof *r->passes, "its passes");
    r->prompts = section(r, &h->prompts, sizeof *r->prompts, "its prompts");
    r->ids = section(r, &h->ids, sizeof *r->ids, "its token ids");
    r->first = section(r, &h->first, sizeof *r->first, "its first tokens");
    check_passes(r);
}

void record_map_model(struct record *r, const char *path) {
    uint8_t sha[32];
    r->model = map_file(path);
    const struct record_head *h = r->head;
    int same = r->model.size == h->file_bytes && h->header_bytes <= h->file_bytes;
    if (same) sha256(r->model.bytes, h->header_bytes, sha);
    if (!same || memcmp(sha, h->header_sha, sizeof sha))
        die("%s is not the file that %s was recorded from: record it again with gwq-bench %s"
            " --record", path, r->path, path);
}

void record_unmap_model(struct record *r) {
    gwq_map_forget(r->model.watched);
    munmap(r->model.bytes, r->model.size);
    r->model = (struct mapped){.watched = -1};
}

/* --- places ----------------------------------------------------------------------------------- */

void *record_bytes(struct record *r, const void *place, uint64_t bytes, int written) {
    const uint64_t at = place_at(place);
    uint8_t *base = NULL;
    uint64_t size = 0;
    if (place_kind(place) == PLACE_MEMORY) {
        base = r->memory;
        size = r->head->memory_bytes;
    } else if (place_kind(place) == PLACE_CONSTANTS && !written) {
        base = r->constants;
        size = r->head->constants.count;
    }
    if (!base || at % sizeof(float) || at > size || bytes > size - at)
        record_damaged(r, "an operation leaves its memory");
    return base + at;
}

const gwq_matrix *record_matrix(struct record *r, const void *place) {
    if (place_kind(place) != PLACE_MATRIX || place_at(place) >= r->head->matrices.count)
        record_damaged(r, "an operation without its matrix");
    return r->matrices + place_at(place);
}
