/* Places become pointers: of matrices, of lists of experts, of operations. */
#include <string.h>
#include "record.h"
#include "say.h"

/* Bytes of the model's file, or of the constants, that begin at a multiple of `aligned` */
static const uint8_t *of_file(struct record *r, const void *place, uint64_t bytes, int aligned) {
    const int in_file = place_kind(place) == PLACE_FILE;
    const uint64_t size = in_file ? r->model.size : r->head->constants.count;
    const uint64_t at = place_at(place);
    if ((!in_file && place_kind(place) != PLACE_CONSTANTS) || at % (uint64_t)aligned || at > size ||
        bytes > size - at)
        record_damaged(r, "a matrix lies outside of its file");
    return (in_file ? r->model.bytes : r->constants) + at;
}

/* Once checked, a side-table must never change: it says where kernels read. So it is copied. */
static const uint8_t *own(struct record *r, const void *place, uint64_t bytes) {
    return memcpy(allocate(bytes), of_file(r, place, bytes, 1), bytes);
}

static void link_matrix(struct record *r, gwq_matrix *m) {
    enum { TENSOR = 8 }; /* bytes, at multiples of which all tensors of GGUF files begin */
    if (m->data_bytes > r->size + r->model.size) record_damaged(r, "the size of a matrix");
    m->data = of_file(r, m->data, m->data_bytes, TENSOR);
    if (m->outliers) {
        if (m->outlier_bytes > INT32_MAX || m->offset_bytes > INT32_MAX)
            record_damaged(r, "the size of a side-table");
        m->outliers = own(r, m->outliers, m->outlier_bytes);
        m->offsets = own(r, m->offsets, m->offset_bytes);
    } else {
        m->offsets = NULL;
    }
    const int status = gwq_matrix_check(m);
    if (status == GWQ_E_SHAPE || status == GWQ_E_SIZE || status == GWQ_E_TYPE)
        record_damaged(r, "the shape of a matrix");
    if (status) die("%s is damaged (a matrix): copy it again", r->model.path);
}

void record_link(struct record *r) {
    struct record_head *h = r->head;
    r->memory = allocate(h->memory_bytes);
    for (uint64_t i = 0; i < h->matrices.count; i++) link_matrix(r, r->matrices + i);
    for (uint64_t i = 0; i < h->experts.count; i++)
        r->experts[i] = record_matrix(r, r->experts[i]);
    for (uint64_t i = 0; i < h->passes.count; i++) {
        struct record_pass *p = r->passes + i;
        for (int64_t k = 0; k < p->count; k++) record_link_op(r, p, r->ops + p->first + k);
        if (!p->rows) continue;
        const void *place = (const void *)(uintptr_t)p->logits;
        p->logits = (uint64_t)(uintptr_t)record_bytes(r, place, 4 * (uint64_t)h->vocab, 1);
    }
}
