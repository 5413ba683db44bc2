/* A recorded forward pass: what `gwq-bench MODEL.gguf --record FILE` writes, and how it is read.
 *
 * The file is a struct record_head, then sections, each where a cache line begins:
 *
 *     constants  bytes that operations read beside the model's file: norms, biases, cosines
 *     matrices   gwq_matrix structs
 *     experts    uint64 places of matrices: lists of all experts of a layer
 *     ops        gwq_op structs, of all passes
 *     passes     record_pass structs, those of most tokens first
 *     prompts    int64 lengths of prompts that the passes are made for
 *     ids        int32 token ids of the prompts, ctx of them
 *     first      record_first structs: the tokens that the recording machine decoded after the
 *                first first_prompt ids
 *
 * A pass of up to GWQ_PROGRAM_TOKENS tokens is a program (gwq_program.h); one of more is a list of
 * calls, one of each op, in which ops are not joined, and attention of fewer rows than tokens is
 * that of the last tokens. Caches and tables of cosines have room for ctx positions.
 *
 * Structs are those of the 64-bit little-endian machines that this library is for; `abi` says of
 * which headers. In the place of a pointer stands a place: in the top 8 bits what it lies in, below
 * where it lies there. Nothing of a file is believed: record_open checks every number and every
 * place, and that all that an op may read or write lies within what it points into. */
#ifndef GWQ_BENCH_RECORD_H
#define GWQ_BENCH_RECORD_H
#include "gwq_program.h"

#define RECORD_MAGIC "GWQPASS1"

enum place_kind {
    PLACE_FILE = 1,  /* a byte of the model's file */
    PLACE_CONSTANTS, /* a byte of the section */
    PLACE_MEMORY,    /* a byte of memory that operations write, zeros at first */
    PLACE_MATRIX,    /* a number of the section */
    PLACE_EXPERTS    /* likewise */
};

struct record_section {
    uint64_t at, count; /* first byte; bytes, structs or numbers */
};

struct record_head {
    char magic[8];
    char abi[64];
    char name[128], type[128]; /* of the model, and of its mixture of types */
    char isa[16], cache[16];   /* of the recording machine; type of KV caches */
    uint8_t header_sha[32];    /* SHA-256 of the model file's first header_bytes */
    uint64_t file_bytes, header_bytes;
    int64_t params, context;   /* of the model */
    int64_t token_bytes;       /* that decoding a token reads */
    int64_t ctx, vocab, batch; /* positions; token ids; tokens of a long prompt's batch */
    int64_t first_prompt;
    uint64_t memory_bytes;
    struct record_section constants, matrices, experts, ops, passes, prompts, ids, first;
};

struct record_pass {
    int64_t n, rows;      /* tokens; rows of logits, 0 or 1 */
    int64_t first, count; /* ops */
    uint64_t logits;      /* place of the row */
};

struct record_first {
    int32_t id;
    float logit;
};

/* A file that is mapped, and watched (gwq_maps.h) */
struct mapped {
    const char *path;
    uint8_t *bytes;
    uint64_t size;
    int watched; /* for gwq_map_faults, -1 if it is not */
};

struct record {
    const char *path;
    struct record_head *head;      /* the whole file, in memory of our own */
    uint64_t size;
    struct mapped model;
    uint8_t *constants, *memory;   /* where places lead */
    gwq_matrix *matrices;
    const gwq_matrix **experts;
    gwq_op *ops;
    struct record_pass *passes;
    const int64_t *prompts;
    const int32_t *ids;
    const struct record_first *first;
};

struct mapped map_file(const char *path);

/* Reads the record's head and sections; ends the program where they are not sound. */
void record_read(struct record *r, const char *path);
/* Maps the model that it was made from, and sees that it is the same. */
void record_map_model(struct record *r, const char *path);
/* Unmaps the model, which can be mapped again. */
void record_unmap_model(struct record *r);
/* Makes pointers of all places: first of the matrices and experts, then of the ops. */
void record_link(struct record *r);

/* --- for record_link -------------------------------------------------------------------------- */

static inline int place_kind(const void *place) { return (int)((uint64_t)(uintptr_t)place >> 56); }
static inline uint64_t place_at(const void *place) {
    return (uint64_t)(uintptr_t)place & (((uint64_t)1 << 56) - 1);
}

/* The pointer of a place with `bytes` bytes behind it; ends the program if it has not got them. */
void *record_bytes(struct record *r, const void *place, uint64_t bytes, int written);
const gwq_matrix *record_matrix(struct record *r, const void *place);
void record_link_op(struct record *r, const struct record_pass *pass, gwq_op *op);
_Noreturn void record_damaged(const struct record *r, const char *what);
#endif
