// cublasLt without a GPU: plain loops on the queues of the fake driver.

#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

#include <cmath>

struct Operation { int compute, scale, transposed[2]; };
struct Layout { int type; uint64_t rows, columns; int64_t leading; int batch; int64_t stride; };
struct Preference { size_t workspace; unsigned aligned[4]; };
struct Result { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; };

#define API extern "C" __attribute__((visibility("default")))

API int cublasLtCreate(void** h) { *h = (void*)1; return 0; }
API int cublasLtDestroy(void*) { return 0; }
API int cublasLtMatmulDescCreate(Operation** o, int compute, int scale) { *o = new Operation{compute, scale, {0, 0}}; return 0; }
API int cublasLtMatmulDescDestroy(Operation* o) { delete o; return 0; }
API int cublasLtMatmulDescSetAttribute(Operation* o, int which, const void* v, size_t n) {
    if ((which != 3 && which != 4) || n != 4) return 7;
    o->transposed[which - 3] = *(const int*)v;
    return 0;
}
API int cublasLtMatrixLayoutCreate(Layout** l, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (leading < (int64_t)rows) return 7;
    *l = new Layout{type, rows, columns, leading, 1, 0};
    return 0;
}
API int cublasLtMatrixLayoutDestroy(Layout* l) { delete l; return 0; }
API int cublasLtMatrixLayoutSetAttribute(Layout* l, int which, const void* v, size_t n) {
    if (which == 5 && n == 4) l->batch = *(const int*)v;
    else if (which == 6 && n == 8) l->stride = *(const int64_t*)v;
    else return 7;
    return 0;
}
API int cublasLtMatmulPreferenceCreate(Preference** p) { *p = new Preference{}; return 0; }
API int cublasLtMatmulPreferenceDestroy(Preference* p) { delete p; return 0; }
API int cublasLtMatmulPreferenceSetAttribute(Preference* p, int which, const void* v, size_t n) {
    if (which == 1 && n == 8) p->workspace = *(const size_t*)v;
    else if (which >= 5 && which <= 8 && n == 4) p->aligned[which - 5] = *(const unsigned*)v;
    else return 7;
    return 0;
}
API int cublasLtMatmulAlgoGetHeuristic(void*, Operation*, Layout*, Layout*, Layout*, Layout*, Preference* p, int most, Result* r, int* n) {
    *n = most < 2 ? most : 2;
    for (int i = 0; i < *n; i++) {
        memset(&r[i], 0, sizeof(Result));
        // Whoever is called with an algorithm must keep to the alignment that it was made for.
        r[i].algorithm[0] = 42;
        for (int x = 0; x < 4; x++) r[i].algorithm[1 + x] = p->aligned[x];
    }
    return 0;
}

static double get(const void* p, int64_t i, int type) {
    switch (type) {
    case 0: return ((const float*)p)[i];
    case 1: return ((const double*)p)[i];
    case 14: { uint32_t u = (uint32_t)((const uint16_t*)p)[i] << 16; float x; memcpy(&x, &u, 4); return x; }
    default: return (double)((const _Float16*)p)[i];
    }
}
static void put(void* p, int64_t i, int type, double x) {
    switch (type) {
    case 0: ((float*)p)[i] = (float)x; return;
    case 1: ((double*)p)[i] = x; return;
    case 14: {
        float y = (float)x; uint32_t u; memcpy(&u, &y, 4);
        ((uint16_t*)p)[i] = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
        return;
    }
    default: ((_Float16*)p)[i] = (_Float16)x;
    }
}

struct Product { Operation o; Layout a, b, d; const char *pa, *pb; char* pd; double scale; };
static void run(void* data) {
    Product* p = (Product*)data;
    const uint64_t m = p->d.rows, n = p->d.columns, k = p->o.transposed[0] ? p->a.rows : p->a.columns;
    for (int64_t batch = 0; batch < p->d.batch; batch++)
        for (uint64_t i = 0; i < m; i++)
            for (uint64_t j = 0; j < n; j++) {
                double sum = 0;
                for (uint64_t l = 0; l < k; l++) {
                    const int64_t a = p->o.transposed[0] ? l + i * p->a.leading : i + l * p->a.leading;
                    const int64_t b = p->o.transposed[1] ? j + l * p->b.leading : l + j * p->b.leading;
                    sum += get(p->pa, batch * p->a.stride + a, p->a.type) * get(p->pb, batch * p->b.stride + b, p->b.type);
                }
                put(p->pd, batch * p->d.stride + i + j * p->d.leading, p->d.type, p->scale * sum);
            }
    // Not deleted: a graph runs it again.
}
API int cublasLtMatmul(void*, Operation* o, const void* alpha, const char* a, Layout* la, const char* b, Layout* lb,
                       const void* beta, const char*, Layout*, char* d, Layout* ld, const uint64_t* algorithm, void*,
                       size_t, void* stream) {
    typedef int (*Enqueue)(void*, void (*)(void*), void*, bool (*)(void*));
    static Enqueue enqueue = (Enqueue)dlsym(dlopen("libcuda.so", RTLD_NOW), "fake_enqueue");
    const double scale = o->scale == 1 ? *(const double*)alpha : *(const float*)alpha;
    const uint64_t k = o->transposed[0] ? la->rows : la->columns, other = o->transposed[1] ? lb->columns : lb->rows;
    if (algorithm[0] != 42 || k != other) return 7;
    const uintptr_t places[] = {(uintptr_t)a, (uintptr_t)b, (uintptr_t)d, (uintptr_t)d};
    for (int x = 0; x < 4; x++) if (places[x] % algorithm[1 + x]) return 7;
    return enqueue(stream, run, new Product{*o, *la, *lb, *ld, a, b, d, scale}, nullptr) ? 14 : 0;
}
