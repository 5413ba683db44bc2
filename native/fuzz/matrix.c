/* A matrix of a file: checked, and where the check lets it through, its rows as floats by one of
 * the instruction sets, which has to agree with plain C to the bit. */
#include <math.h>
#include <stdlib.h>
#include "input.h"

static int same(const float *a, const float *b, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (memcmp(a + i, b + i, sizeof *a) && !(isnan(a[i]) && isnan(b[i]))) return 0;
    return 1;
}

static void look_up(struct input *in, const gwq_matrix *m, const float *all) {
    enum { IDS = 3 };
    const size_t bytes = (size_t)m->cols * sizeof(float);
    float *group = block(GWQ_ROWS * bytes), *out = block(IDS * bytes);
    int32_t ids[IDS];
    for (int i = 0; i < IDS; i++) ids[i] = take(in) - 4;
    const int status = gwq_embed(m, ids, IDS, group, out);
    for (int i = 0; i < IDS; i++) {
        const int there = ids[i] >= 0 && ids[i] < m->rows;
        if (!there) expect(status == GWQ_E_INDEX, "a row that is not there is refused");
        if (!status)
            expect(same(out + i * m->cols, all + ids[i] * m->cols, m->cols), "rows are the same");
    }
    free(group);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input in = {data, size};
    struct given g;
    take_isa(&in);
    take_matrix(&in, &g);
    const gwq_matrix *m = &g.m;
    if (!gwq_matrix_check(m)) {
        const int64_t count = m->rows * m->cols;
        float *plain = block((size_t)count * sizeof *plain);
        float *out = block((size_t)count * sizeof *out);
        expect(!gwq_dequantize(NULL, m, 0, m->rows, out), "what is checked can be decoded");
        look_up(&in, m, out);
        gwq_isa_select("scalar");
        expect(!gwq_dequantize(NULL, m, 0, m->rows, plain), "what is checked can be decoded");
        expect(same(out, plain, count), "every instruction set decodes to the same bits");
        free(out);
        free(plain);
    }
    free_given(&g);
    return 0;
}
