// cublasLt without a GPU: plain loops on the queues of the fake driver.
//
// TPC_FAKE_CUBLASLT selects further limitations. `no_epilogues`: no algorithm is found for an epilogue (an added matrix
// only shows when the library is called). `failing_epilogues`: algorithms are found, but all of them fail when they are
// called for an epilogue or to add a matrix. `first_fails`: only the first of them fails.

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmath>

struct Operation {
    int compute, scale, transposed[2];
    int epilogue;
    const char* bias;
    int64_t bias_stride;
    char* aux;
    int64_t aux_leading, aux_stride;
};
struct Layout { int type; uint64_t rows, columns; int64_t leading; int batch; int64_t stride; };
struct Preference { size_t workspace; unsigned aligned[4]; };
struct Result { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; };

#define API extern "C" __attribute__((visibility("default")))

API int cublasLtCreate(void** h) { *h = (void*)1; return 0; }
API int cublasLtDestroy(void*) { return 0; }
API int cublasLtMatmulDescCreate(Operation** o, int compute, int scale) { *o = new Operation{compute, scale, {0, 0}, 1, nullptr, 0, nullptr, 0, 0}; return 0; }
API int cublasLtMatmulDescDestroy(Operation* o) { delete o; return 0; }
API int cublasLtMatmulDescSetAttribute(Operation* o, int which, const void* v, size_t n) {
    if ((which == 3 || which == 4) && n == 4) o->transposed[which - 3] = *(const int*)v;
    else if (which == 7 && n == 4) o->epilogue = *(const int*)v;
    else if (which == 8 && n == 8) o->bias = *(const char* const*)v;
    else if (which == 10 && n == 8) o->bias_stride = *(const int64_t*)v;
    else if (which == 11 && n == 8) o->aux = *(char* const*)v;
    else if (which == 12 && n == 8) o->aux_leading = *(const int64_t*)v;
    else if (which == 13 && n == 8) o->aux_stride = *(const int64_t*)v;
    else return 7;
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

enum { RELU = 2, BIAS = 4, GELU = 32, AUX = 128 };
static bool told(const char* what) {
    const char* said = getenv("TPC_FAKE_CUBLASLT");
    return said && !strcmp(said, what);
}
static size_t bytes(int type) { return type == 1 ? 8 : type == 0 ? 4 : 2; }

// What the library refuses: 7 is an invalid value, 15 is not supported.
static int refused(const Operation* o, const Layout* a, const Layout* b, const Layout* c, const Layout* d) {
    const int e = o->epilogue;
    if (e != 1 && e != BIAS && e != RELU && e != (RELU | BIAS) && (e & ~(BIAS | AUX)) != GELU) return 15;
    // Operands have one type; the sum has that type, or f32; an added matrix has the result's type.
    const bool narrow = a->type == 14 || a->type == 2;
    if (a->type != b->type || (d->type != a->type && !(narrow && d->type == 0)) || c->type != d->type) return 15;
    if ((d->type == 1) != (o->scale == 1)) return 15;
    if (c->rows != d->rows || c->columns != d->columns || c->batch != d->batch) return 7;
    // In f64 it has no epilogues.
    if (d->type == 1 && e != 1) return 15;
    if (e != 1 && (e & BIAS) && (!o->bias || (uintptr_t)o->bias % bytes(d->type))) return 7;
    if (e != 1 && (e & AUX)) {
        if (!o->aux || (uintptr_t)o->aux % 16 || o->aux_leading % 8 || o->aux_leading < (int64_t)d->rows) return 7;
        if (d->batch > 1 && o->aux_stride % 8) return 7;
    }
    return 0;
}

API int cublasLtMatmulAlgoGetHeuristic(void*, Operation* o, Layout* a, Layout* b, Layout* c, Layout* d, Preference* p, int most, Result* r, int* n) {
    *n = 0;
    if (int no = refused(o, a, b, c, d)) return no;
    if (told("no_epilogues") && o->epilogue != 1) return 15;
    *n = most < 2 ? most : 2;
    for (int i = 0; i < *n; i++) {
        memset(&r[i], 0, sizeof(Result));
        // A call with an algorithm must keep to the alignment that the algorithm was made for.
        r[i].algorithm[0] = 42;
        for (int x = 0; x < 4; x++) r[i].algorithm[1 + x] = p->aligned[x];
        r[i].algorithm[5] = i;
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

struct Product { Operation o; Layout a, b, c, d; const char *pa, *pb, *pc; char* pd; double scale, beta; };
static void run(void* data) {
    Product* p = (Product*)data;
    const uint64_t m = p->d.rows, n = p->d.columns, k = p->o.transposed[0] ? p->a.rows : p->a.columns;
    const int e = p->o.epilogue == 1 ? 0 : p->o.epilogue, type = p->d.type;
    for (int64_t batch = 0; batch < p->d.batch; batch++)
        for (uint64_t i = 0; i < m; i++)
            for (uint64_t j = 0; j < n; j++) {
                double sum = 0;
                for (uint64_t l = 0; l < k; l++) {
                    const int64_t a = p->o.transposed[0] ? l + i * p->a.leading : i + l * p->a.leading;
                    const int64_t b = p->o.transposed[1] ? j + l * p->b.leading : l + j * p->b.leading;
                    sum += get(p->pa, batch * p->a.stride + a, p->a.type) * get(p->pb, batch * p->b.stride + b, p->b.type);
                }
                sum *= p->scale;
                if (p->beta != 0) sum += p->beta * get(p->pc, batch * p->c.stride + i + j * p->c.leading, type);
                if (e & BIAS) sum += get(p->o.bias, batch * p->o.bias_stride + i, type);
                if (e & AUX) put(p->o.aux, batch * p->o.aux_stride + i + j * p->o.aux_leading, type, sum);
                if (e & RELU) sum = sum > 0 ? sum : 0;
                if (e & GELU) sum = sum * 0.5 * (1 + tanh(0.79788456080286535588 * (sum + 0.044715 * sum * sum * sum)));
                put(p->pd, batch * p->d.stride + i + j * p->d.leading, type, sum);
            }
    // Not deleted: a graph runs it again.
}
API int cublasLtMatmul(void*, Operation* o, const void* alpha, const char* a, Layout* la, const char* b, Layout* lb,
                       const void* beta, const char* c, Layout* lc, char* d, Layout* ld, const uint64_t* algorithm, void*,
                       size_t, void* stream) {
    typedef int (*Enqueue)(void*, void (*)(void*), void*, bool (*)(void*));
    static Enqueue enqueue = (Enqueue)dlsym(dlopen("libcuda.so", RTLD_NOW), "fake_enqueue");
    const double scale = o->scale == 1 ? *(const double*)alpha : *(const float*)alpha;
    const double add = o->scale == 1 ? *(const double*)beta : *(const float*)beta;
    const uint64_t k = o->transposed[0] ? la->rows : la->columns, other = o->transposed[1] ? lb->columns : lb->rows;
    if (algorithm[0] != 42 || k != other) return 7;
    if (int no = refused(o, la, lb, lc, ld)) return no;
    // In place, both have the same layout.
    if (c == d && (lc->leading != ld->leading || lc->stride != ld->stride)) return 7;
    if (c != d && add == 0) return 7;
    const bool plain = o->epilogue == 1 && add == 0;
    if (!plain && (told("failing_epilogues") || (told("first_fails") && algorithm[5] == 0))) return 15;
    const uintptr_t places[] = {(uintptr_t)a, (uintptr_t)b, (uintptr_t)c, (uintptr_t)d};
    for (int x = 0; x < 4; x++) if (places[x] % algorithm[1 + x]) return 7;
    // A bias has the alignment of the result.
    if (o->epilogue != 1 && (o->epilogue & BIAS) && (uintptr_t)o->bias % algorithm[4]) return 7;
    return enqueue(stream, run, new Product{*o, *la, *lb, *lc, *ld, a, b, c, d, scale, add}, nullptr) ? 14 : 0;
}
