#include "input.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    MOST_ROWS = 40,
    MOST_COLS = 600,
    MOST_COUNT = 12, /* outliers of a row of a tile, where the bytes do not say otherwise */
    PATCHES = 4
};
enum given_flags {
    OUTLIERS = 1,
    RAW_TABLE = 2,  /* the side-table is the bytes as they are, not what suits the shape */
    SOUND_HEAD = 4, /* table and exponent are made to be in range */
    SHORT_DATA = 8, /* a byte less than the shape asks for */
    ANY_COLS = 16,  /* also of types that have whole blocks only */
    NEXT_EIGHT = 32 /* the data begins at a multiple of 8 that is none of 16 */
};

void expect(int holds, const char *promise) {
    if (holds) return;
    fprintf(stderr, "broken promise: %s\n", promise);
    abort();
}

void *block(size_t bytes) {
    void *p = NULL;
    expect(!posix_memalign(&p, 64, bytes ? bytes : 1), "there is memory");
    return p;
}

void take_bytes(struct input *in, uint8_t *out, size_t count) {
    const size_t here = count < in->left ? count : in->left;
    uint32_t state = 1;
    memcpy(out, in->at, here);
    for (size_t i = 0; i < here; i++) state = state * 31 + out[i];
    in->at += here;
    in->left -= here;
    for (size_t i = here; i < count; i++) {
        state = state * 1664525 + 1013904223;
        out[i] = (uint8_t)(state >> 24);
    }
}

float *take_floats(struct input *in, int64_t count) {
    float *out = block((size_t)count * sizeof *out);
    uint8_t *bytes = block((size_t)count);
    const int odd = take(in) % 8 == 0;
    take_bytes(in, bytes, (size_t)count);
    for (int64_t i = 0; i < count; i++) {
        out[i] = ldexpf((float)(int8_t)bytes[i], bytes[i] % 8 - 6);
        if (odd && bytes[i] > 253) out[i] = bytes[i] == 255 ? NAN : INFINITY;
    }
    free(bytes);
    return out;
}

void take_isa(struct input *in) {
    int names = 0;
    while (gwq_isa_name(names)) names++;
    const int first = take(in) % names;
    for (int i = 0; i < names; i++) /* scalar is one that there is */
        if (!gwq_isa_select(gwq_isa_name((first + i) % names))) return;
}

/* One record of a sound side-table, at `out`; returns its bytes. width: columns of the tile. */
static size_t sound_record(struct input *in, int rows, int width, uint8_t *out) {
    int total = 0, at = 0, last[GWQ_ROWS];
    const int most = take(in) % (MOST_COUNT + 1);
    for (int r = 0; r < GWQ_ROWS; r++) {
        const int count = r < rows ? take(in) % (most + 1) : 0;
        out[r] = (uint8_t)(count < width ? count : width);
        total += out[r];
        last[r] = -1;
    }
    take_bytes(in, out + GWQ_ROWS, 2 * (size_t)total);
    uint8_t *column = out + GWQ_ROWS + 2 * total;
    for (int level = 0; at < total; level++)
        for (int r = 0; r < GWQ_ROWS; r++)
            if (out[r] > level) {
                const int room = width - (out[r] - level) - last[r]; /* columns to choose from */
                last[r] += 1 + take(in) % room;
                column[at++] = (uint8_t)last[r];
            }
    return GWQ_ROWS + 3 * (size_t)total;
}

static void take_side_table(struct input *in, struct given *g, int raw) {
    gwq_matrix *m = &g->m;
    const int64_t groups = gwq_groups(m->rows), tiles = gwq_tiles(m->cols);
    const size_t most = (size_t)(groups * tiles) * (GWQ_ROWS + 3 * GWQ_ROWS * MOST_COUNT);
    m->offset_bytes = 4 * (uint64_t)(groups + 1);
    g->offsets = block(m->offset_bytes);
    if (raw) {
        m->outlier_bytes = (uint64_t)take_16(in) % (most + 1);
        g->outliers = block(m->outlier_bytes);
        take_bytes(in, g->offsets, m->offset_bytes);
        take_bytes(in, g->outliers, m->outlier_bytes);
        return;
    }
    uint8_t *table = block(most);
    uint32_t at = 0;
    for (int64_t group = 0; group <= groups; group++) {
        memcpy(g->offsets + 4 * group, &at, sizeof at);
        for (int64_t t = 0; group < groups && t < tiles; t++) {
            const int rows = (int)min64(m->rows - group * GWQ_ROWS, GWQ_ROWS);
            const int width = (int)min64(m->cols - t * GWQ_TILE, GWQ_TILE);
            at += (uint32_t)sound_record(in, rows, width, table + at);
        }
    }
    m->outlier_bytes = at;
    g->outliers = block(at);
    memcpy(g->outliers, table, at);
    free(table);
}

void take_matrix(struct input *in, struct given *g) {
    struct {
        int array, at, value;
    } patch[PATCHES];
    gwq_matrix *m = &g->m;
    memset(g, 0, sizeof *g);
    const gwq_type_row *type = &gwq_types[take(in) % GWQ_K_COUNT];
    m->type = type->id;
    m->rows = 1 + take(in) % MOST_ROWS;
    m->cols = 1 + take_16(in) % MOST_COLS;
    const int flags = take(in), patches = take(in) % PATCHES;
    if (!(flags & ANY_COLS) && !type->bits)
        m->cols = (m->cols + type->unit - 1) / type->unit * type->unit;
    for (int i = 0; i < patches; i++) {
        patch[i].array = take(in);
        patch[i].at = take_16(in);
        patch[i].value = take(in);
    }
    if (flags & OUTLIERS) take_side_table(in, g, flags & RAW_TABLE);
    m->data_bytes = gwq_matrix_bytes(m->type, m->rows, m->cols);
    if (flags & SHORT_DATA && m->data_bytes) m->data_bytes--;
    const size_t skip = flags & NEXT_EIGHT ? 8 : 0;
    g->of_data = block(m->data_bytes + skip);
    uint8_t *data = g->of_data + skip;
    take_bytes(in, data, m->data_bytes);
    if (flags & SOUND_HEAD && type->bits) {
        for (int i = 0; i < 16; i++) data[i] = (uint8_t)((int8_t)data[i] >> 2);
        data[16] = (uint8_t)((int8_t)data[16] >> 1);
    }
    for (int i = 0; i < patches; i++) {
        uint8_t *of[] = {data, g->outliers, g->offsets};
        const uint64_t size[] = {m->data_bytes, m->outlier_bytes, m->offset_bytes};
        const int k = patch[i].array % 3;
        if (of[k] && size[k]) of[k][(uint64_t)patch[i].at % size[k]] = (uint8_t)patch[i].value;
    }
    m->data = data;
    m->outliers = g->outliers;
    m->offsets = g->offsets;
}

void free_given(struct given *g) {
    free(g->of_data);
    free(g->outliers);
    free(g->offsets);
}
