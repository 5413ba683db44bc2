/* A recorded forward pass and the model's file, as gwq-bench-native opens and runs them.
 *
 *     bytes of the record (4 bytes), flags, the record, the model's file
 *
 * What ends the program there ends the run here: its status has to be that of a damaged file. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "bench/pages.h"
#include "bench/pass.h"
#include "bench/say.h"
#include "bench/sha256.h"
#include "fuzz/input.h"

enum { MOST_BYTES = 1 << 20, MOST_BLOCKS = 4096 }; /* memory that a record gets */
enum { OTHER_HEAD = 1 }; /* a flag: magic, headers and file are not made to be the right ones */

static jmp_buf ended;
static void *blocks[MOST_BLOCKS];
static int block_count;
static struct model model;

static _Noreturn void fuzz_exit(int status) {
    expect(status == MENDABLE, "a damaged file ends the program with status 2");
    longjmp(ended, 1);
}

#define exit fuzz_exit
#define allocate allocate_of_program
#define release release_of_program
#include "bench/say.c"
#undef exit
#undef allocate
#undef release

void *allocate(size_t bytes) {
    if (bytes > MOST_BYTES || block_count == MOST_BLOCKS) die("out of memory");
    void *p = block(bytes);
    memset(p, 0, bytes);
    return blocks[block_count++] = p;
}

void release(void *memory, size_t bytes) {
    (void)bytes;
    for (int i = 0; i < block_count; i++)
        if (blocks[i] == memory) blocks[i] = blocks[--block_count];
    free(memory);
}

void pages_bring_in(const char *path) { (void)path; } /* it is in memory */

/* Path of a file in memory that holds these bytes */
static const char *file_of(int *file, char path[32], const void *bytes, size_t size) {
    if (!*file) *file = memfd_create("fuzz", 0);
    expect(*file > 0 && !ftruncate(*file, 0), "there are files in memory");
    expect(pwrite(*file, bytes, size, 0) == (ssize_t)size, "they can be written");
    snprintf(path, 32, "/proc/self/fd/%d", *file);
    return path;
}

/* What a fuzzer does not find by itself */
static void make_right(struct record_head *h, const uint8_t *file, size_t size) {
    memcpy(h->magic, RECORD_MAGIC, sizeof h->magic);
    memcpy(h->abi, gwq_abi(), sizeof h->abi);
    h->file_bytes = size;
    if (h->header_bytes > size) h->header_bytes = size;
    sha256(file, h->header_bytes, h->header_sha);
}

static void run(const char *of_model, const char *of_record) {
    model_open(&model, of_model, of_record, 1);
    const struct record_head *h = model.record.head;
    const float *logits = model_forward(&model, model.record.ids, h->first_prompt);
    const int32_t id = model_best(&model, logits);
    expect(id >= 0 && id < h->vocab, "the best token is one of the vocabulary");
    if (model.pos < h->ctx) model_forward(&model, &id, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int record_file, model_file;
    char record_path[32], model_path[32];
    uint32_t length;
    if (size < sizeof length + 1) return 0;
    memcpy(&length, data, sizeof length);
    const int flags = data[sizeof length];
    data += sizeof length + 1;
    size -= sizeof length + 1;
    if (length > size) length = (uint32_t)size;
    uint8_t *record = block(length);
    memcpy(record, data, length);
    if (!(flags & OTHER_HEAD) && length >= sizeof(struct record_head))
        make_right((struct record_head *)record, data + length, size - length);
    file_of(&record_file, record_path, record, length);
    file_of(&model_file, model_path, data + length, size - length);
    free(record);
    memset(&model, 0, sizeof model);
    if (!setjmp(ended)) run(model_path, record_path);
    if (model.record.model.bytes) record_unmap_model(&model.record);
    gwq_pool_free(model.pool);
    while (block_count) free(blocks[--block_count]);
    return 0;
}
