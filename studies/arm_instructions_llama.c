/* Products of random rows by llama.cpp's functions, for studies/arm_instructions to count
 * instructions of:
 *
 *     arm_instructions_llama FUNCTION ROWS COLUMNS TOKENS TIMES
 *
 * Links with llama.cpp's ggml-cpu/arch/arm/quants.c and repack.cpp. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* y = a row times a token */
typedef void dot_fn(int n, float *s, size_t bs, const void *x, size_t bx, const void *y, size_t by,
                    int rows);
/* y = all rows, repacked, times a token, or times tokens four at a time */
typedef void repacked_fn(int n, float *s, size_t bs, const void *x, const void *y, int tokens,
                         int rows);

/* function, bytes of `unit` weights, bytes of a unit of activations */
#define DOTS(F)                                \
    F(ggml_vec_dot_q4_0_q8_0, 18, 32, 34)      \
    F(ggml_vec_dot_iq4_nl_q8_0, 18, 32, 34)    \
    F(ggml_vec_dot_q4_K_q8_K, 144, 256, 292)   \
    F(ggml_vec_dot_iq4_xs_q8_K, 136, 256, 292) \
    F(ggml_vec_dot_q3_K_q8_K, 110, 256, 292)   \
    F(ggml_vec_dot_iq3_s_q8_K, 110, 256, 292)  \
    F(ggml_vec_dot_q2_K_q8_K, 84, 256, 292)    \
    F(ggml_vec_dot_iq2_xs_q8_K, 74, 256, 292)
#define REPACKED(F)                               \
    F(ggml_gemv_q4_0_4x4_q8_0, 18, 32, 34)        \
    F(ggml_gemv_q4_0_4x8_q8_0, 18, 32, 34)        \
    F(ggml_gemv_iq4_nl_4x4_q8_0, 18, 32, 34)      \
    F(ggml_gemv_q4_K_8x4_q8_K, 144, 256, 292)     \
    F(ggml_gemv_q4_K_8x8_q8_K, 144, 256, 292)     \
    F(ggml_gemm_q4_0_4x4_q8_0, 18, 32, 34)        \
    F(ggml_gemm_q4_0_4x8_q8_0, 18, 32, 34)        \
    F(ggml_gemm_q4_K_8x8_q8_K, 144, 256, 292)

#define DECLARE_DOT(name, bytes, unit, of_x) dot_fn name;
#define DECLARE_REPACKED(name, bytes, unit, of_x) repacked_fn name;
DOTS(DECLARE_DOT)
REPACKED(DECLARE_REPACKED)

static const struct row {
    const char *name;
    dot_fn *dot;
    repacked_fn *repacked;
    int bytes, unit, of_x;
} functions[] = {
#define DOT_ROW(name, bytes, unit, of_x) {#name, name, NULL, bytes, unit, of_x},
#define REPACKED_ROW(name, bytes, unit, of_x) {#name, NULL, name, bytes, unit, of_x},
    DOTS(DOT_ROW) REPACKED(REPACKED_ROW)};

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    const int rows = atoi(argv[2]), cols = atoi(argv[3]), tokens = atoi(argv[4]);
    for (size_t k = 0; k < sizeof functions / sizeof *functions; k++) {
        const struct row *f = &functions[k];
        if (strcmp(f->name, argv[1])) continue;
        const size_t row = (size_t)(cols / f->unit * f->bytes);
        const size_t of_x = (size_t)(cols / f->unit * f->of_x);
        uint8_t *w = malloc(row * (size_t)rows), *x = malloc(of_x * (size_t)tokens);
        float *y = malloc(sizeof *y * (size_t)(rows * tokens));
        for (size_t i = 0; i < row * (size_t)rows; i++) w[i] = (uint8_t)(i * 37 % 119);
        for (size_t i = 0; i < of_x * (size_t)tokens; i++) x[i] = (uint8_t)(i * 31 % 113);
        for (int i = atoi(argv[5]); i > 0; i--) {
            if (f->repacked) f->repacked(cols, y, (size_t)rows, w, x, tokens, rows);
            for (int r = 0; f->dot && r < rows; r++)
                f->dot(cols, y + r, 0, w + row * (size_t)r, 0, x, 0, 1);
        }
        return 0;
    }
    return 3;
}
