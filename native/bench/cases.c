#include "cases.h"
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "files.h"
#include "say.h"

enum { HEAD = 128, GROUP = 4 }; /* of attention: width of a head, query heads of a key head */

static const struct {
    const char *name;
    int32_t id;
    int tiles, cache;
} TYPES[] = {
    {"f32", GWQ_TYPE_F32, 0, 1},   {"f16", GWQ_TYPE_F16, 0, 1},   {"bf16", GWQ_TYPE_BF16, 0, 0},
    {"q8_0", GWQ_TYPE_Q8_0, 0, 1}, {"q4_0", GWQ_TYPE_Q4_0, 0, 0}, {"iq4_nl", GWQ_TYPE_IQ4_NL, 0, 0},
    {"gwq2", GWQ_TYPE_GWQ2, 1, 0}, {"gwq3", GWQ_TYPE_GWQ3, 1, 0}, {"gwq4", GWQ_TYPE_GWQ4, 1, 0},
    {"gwq5", GWQ_TYPE_GWQ5, 1, 0}, {"gwq6", GWQ_TYPE_GWQ6, 1, 0},
};
enum { TYPE_COUNT = sizeof TYPES / sizeof *TYPES };
static const int64_t SHAPES[][2] = {{2048, 2048}, {4096, 11008}};
static const int64_t ATTENTION[][3] = {{4096, 1024, 1}, {512, 1024, 512}}; /* and tokens */
static const int64_t TOKENS[] = {1, 8, 128};
static const double OUTLIERS[] = {0, 0.01};
static const char *const OPS[] = {"gemv", "gemm", "attention"};

const char *op_name(enum case_op op) { return OPS[op]; }

const char *type_name(int32_t type) {
    for (int i = 0; i < TYPE_COUNT; i++)
        if (TYPES[i].id == type) return TYPES[i].name;
    return "";
}

static int chosen(const struct options *o, const struct kernel_case *c) {
    char shape[64];
    snprintf(shape, sizeof shape, "%lldx%lld", (long long)c->rows, (long long)c->cols);
    return (!o->ops || has_word(o->ops, op_name(c->op))) &&
           (!o->types || has_word(o->types, type_name(c->type))) &&
           (!o->shapes || has_word(o->shapes, shape));
}

/* Ends the program unless every word of a list is one of `known`, which blanks separate. */
static void check_words(const char *flag, const char *list, const char *known) {
    for (const char *at = list; at; at = strchr(at, ','), at = at ? at + 1 : NULL) {
        const int length = (int)strcspn(at, ",");
        char word[32];
        snprintf(word, sizeof word, ",%.*s,", length < 24 ? length : 24, at);
        if (!length || !strstr(known, word))
            die("%s %.*s: choose from %.*s", flag, length, at, (int)strlen(known) - 2, known + 1);
    }
}

int cases_of(const struct options *o, struct kernel_case *found, int most) {
    int count = 0;
    check_words("--ops", o->ops, ",gemv,gemm,attention,");
    check_words("--types", o->types,
                ",f32,f16,bf16,q8_0,q4_0,iq4_nl,gwq2,gwq3,gwq4,gwq5,gwq6,");
    check_words("--shapes", o->shapes, ",2048x2048,4096x11008,4096x1024,512x1024,");
    for (int s = 0; s < 2; s++)
        for (int t = 0; t < TYPE_COUNT; t++)
            for (int outliers = 0; outliers <= TYPES[t].tiles; outliers++)
                for (int n = 0; n < 3; n++) {
                    const struct kernel_case c = {
                        TOKENS[n] > 1 ? CASE_GEMM : CASE_GEMV, TYPES[t].id, SHAPES[s][0],
                        SHAPES[s][1], TOKENS[n], OUTLIERS[outliers],
                    };
                    if (count < most && chosen(o, &c)) found[count++] = c;
                }
    for (int s = 0; s < 2; s++)
        for (int t = 0; t < TYPE_COUNT; t++) {
            const struct kernel_case c = {CASE_ATTENTION, TYPES[t].id, ATTENTION[s][0],
                                          ATTENTION[s][1], ATTENTION[s][2], 0};
            if (TYPES[t].cache && count < most && chosen(o, &c)) found[count++] = c;
        }
    if (!count) die("--ops, --types and --shapes leave nothing to measure: give fewer of them");
    return count;
}

/* --- data, and calls -------------------------------------------------------------------------- */

static void build_product(struct built *b, uint64_t working_set) {
    const struct kernel_case *c = &b->of;
    const gwq_matrix first = random_matrix(c->type, c->rows, c->cols, c->outliers);
    b->bytes = matrix_bytes(&first);
    b->copies = (int64_t)(working_set / b->bytes) + 1;
    b->m = allocate(sizeof *b->m * (size_t)b->copies);
    b->m[0] = first;
    for (int64_t i = 1; i < b->copies; i++) b->m[i] = copy_of_matrix(&first);
    b->x_bytes = 4 * (uint64_t)(c->tokens * c->cols);
    b->y_bytes = 4 * (uint64_t)(c->tokens * c->rows);
    b->scratch_bytes = gwq_scratch_bytes(c->tokens, c->cols);
    b->operations = 2.0 * (double)c->tokens * (double)c->rows * (double)c->cols;
}

static void build_attention(struct built *b, uint64_t working_set) {
    const struct kernel_case *c = &b->of;
    const int64_t numbers = c->rows * c->cols, heads = c->cols / HEAD * GROUP;
    const double n = (double)c->tokens, start = (double)(c->rows - c->tokens);
    b->half = gwq_matrix_bytes(c->type, c->rows, c->cols);
    b->bytes = 2 * b->half;
    b->copies = (int64_t)(working_set / b->bytes) + 1;
    b->caches = allocate(b->bytes * (size_t)b->copies);
    float *x = allocate(4 * (size_t)numbers);
    for (int64_t i = 0; i < 2 * b->copies; i++) {
        random_floats(x, numbers);
        const int status = gwq_cache(x, numbers, c->type, b->caches + b->half * (uint64_t)i, 0);
        if (status) die_of(status, "attention");
    }
    release(x, 4 * (size_t)numbers);
    b->x_bytes = b->y_bytes = 4 * (uint64_t)(c->tokens * heads * HEAD);
    b->scratch_bytes = gwq_attention_bytes(c->tokens, heads, HEAD);
    /* a query and a key, and a weight and a value: 2 operations per number of the head each */
    b->operations = 4.0 * (double)(heads * HEAD) * (n * start + n * (n + 1) / 2);
}

struct built build_case(const struct kernel_case *c, uint64_t working_set) {
    struct built b = {.of = *c};
    if (c->op == CASE_ATTENTION) build_attention(&b, working_set);
    else build_product(&b, working_set);
    b.x = allocate(b.x_bytes);
    b.y = allocate(b.y_bytes);
    b.scratch = b.scratch_bytes ? allocate(b.scratch_bytes) : NULL;
    random_floats(b.x, (int64_t)(b.x_bytes / 4));
    return b;
}

void run_case(struct built *b, gwq_pool *pool) {
    const struct kernel_case *c = &b->of;
    int status;
    if (c->op == CASE_ATTENTION) {
        const int64_t kv_heads = c->cols / HEAD;
        const uint8_t *k = b->caches + b->bytes * (uint64_t)b->at;
        status = gwq_attention(pool, b->x, k, k + b->half, c->type, c->tokens, c->rows - c->tokens,
                               kv_heads * GROUP, kv_heads, HEAD, 1 / sqrtf(HEAD), 0, 0, b->y,
                               b->scratch);
    } else {
        const gwq_matrix *m = b->m + b->at;
        status = gwq_matmul(pool, &m, 1, b->x, c->tokens, &b->y, b->scratch, b->scratch_bytes);
    }
    if (status) die_of(status, op_name(c->op));
    b->at = (b->at + 1) % b->copies;
}

void free_case(struct built *b) {
    for (int64_t i = 0; b->m && i < b->copies; i++) free_matrix(b->m + i);
    release(b->m, sizeof *b->m * (size_t)b->copies);
    release(b->caches, b->bytes * (size_t)b->copies);
    release(b->x, b->x_bytes);
    release(b->y, b->y_bytes);
    release(b->scratch, b->scratch_bytes);
}
