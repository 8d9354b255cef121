// Runs generated kernels on a CPU: defines the parts of CUDA C++ that they use, and runs the threads of a block one after
// another.
//
// Threads that wait for each other are fibers: a round runs each of them up to its next barrier. A shuffle is a barrier,
// a read of the other thread's value, and another barrier. It is an error if threads wait at different barriers, or end
// while others wait, because the behavior of a device is undefined then.

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct Index { unsigned x; };
static Index threadIdx, blockIdx, blockDim, gridDim;

static inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
static inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
template <class T> static inline T __ldg(const T* p) { return *p; }

struct Fiber {
    jmp_buf env;
    ucontext_t start;
    char* stack;
    int site;
    bool started, done;
};
static const int MOST = 1024, STACK = 1 << 16;
static Fiber fibers[MOST];
static jmp_buf scheduler;
static int current, turn, alive, failed;
static unsigned long long slots[MOST];
static void (*body)(char*, const long long*);
static char* memory;
static const long long* arguments;

static __attribute__((noinline)) void barrier(int site) {
    fibers[current].site = site;
    if (!_setjmp(fibers[current].env)) _longjmp(scheduler, 1);
}
#define __syncthreads() barrier(__LINE__)

template <class T> static T exchange(T v, int from, int site) {
    static_assert(sizeof(T) <= 8, "a slot has 8 bytes");
    memcpy(&slots[current], &v, sizeof(T));
    barrier(site);
    T r = v;
    if (from / 32 == current / 32 && from < (int)blockDim.x) memcpy(&r, &slots[from], sizeof(T));
    barrier(-site);
    return r;
}
template <class T> static T __shfl_xor_sync(unsigned, T v, int o, int site = __builtin_LINE()) {
    return exchange(v, current ^ o, site);
}
template <class T> static T __shfl_up_sync(unsigned, T v, int o, int site = __builtin_LINE()) {
    return exchange(v, current % 32 >= o ? current - o : current, site);
}
template <class T> static T __shfl_sync(unsigned, T v, int lane, int site = __builtin_LINE()) {
    return exchange(v, current / 32 * 32 + lane, site);
}

#define __syncwarp() barrier(__LINE__)
alignas(16) static char dynamic_shared[227 << 10];

// Each lane passes the address of a row of 8 elements of 16 bits, and receives a pair of each of four matrices.
static void emulated_ldmatrix(unsigned (&r)[4], const void* row, bool transposed, int site) {
    slots[current] = (unsigned long long)row;
    barrier(site);
    const int warp = current / 32 * 32, lane = current % 32;
    for (int m = 0; m < 4; m++) {
        unsigned short x[2];
        for (int e = 0; e < 2; e++) {
            const int of = lane % 4 * 2 + e;
            x[e] = ((const unsigned short*)slots[warp + m * 8 + (transposed ? of : lane / 4)])[transposed ? lane / 4 : of];
        }
        r[m] = (unsigned)x[1] << 16 | x[0];
    }
    barrier(-site);
}

// Computes c[16][8] += a[16][16] · b[16][8] in a warp, with the elements distributed as PTX defines (mma.m16n8k16).
static unsigned fragments[MOST][6];
static void emulated_mma(float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0, unsigned b1,
                         float (*of)(unsigned short), int site) {
    unsigned* const mine = fragments[current];
    for (int i = 0; i < 4; i++) mine[i] = a[i];
    mine[4] = b0;
    mine[5] = b1;
    barrier(site);
    const int warp = current / 32 * 32, lane = current % 32;
    float* const c[4] = {&c0, &c1, &c2, &c3};
    for (int e = 0; e < 4; e++) {
        const int column = lane % 4 * 2 + e % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            const int holder = k % 8 / 2, half = k % 2 * 16, far = k / 8;
            const unsigned x = fragments[warp + lane / 4 * 4 + holder][far * 2 + e / 2] >> half;
            const unsigned y = fragments[warp + column * 4 + holder][4 + far] >> half;
            sum += of((unsigned short)x) * of((unsigned short)y);
        }
        *c[e] += sum;
    }
    barrier(-site);
}

static void fiber() {
    body(memory, arguments);
    fibers[current].done = true;
    alive--;
    _longjmp(scheduler, 1);
}

static void run_block(int backwards) {
    const int threads = blockDim.x;
    for (int i = 0; i < threads; i++) {
        if (!fibers[i].stack) fibers[i].stack = (char*)malloc(STACK);
        fibers[i].started = fibers[i].done = false;
    }
    alive = threads;
    while (alive > 0 && !failed) {
        for (turn = 0; turn < threads; turn++) {
            current = backwards ? threads - 1 - turn : turn;
            threadIdx.x = current;
            if (fibers[current].done) continue;
            if (_setjmp(scheduler)) continue;
            if (fibers[current].started) _longjmp(fibers[current].env, 1);
            fibers[current].started = true;
            getcontext(&fibers[current].start);
            fibers[current].start.uc_stack.ss_sp = fibers[current].stack;
            fibers[current].start.uc_stack.ss_size = STACK;
            fibers[current].start.uc_link = 0;
            makecontext(&fibers[current].start, fiber, 0);
            setcontext(&fibers[current].start);
        }
        if (alive != 0 && alive != threads) failed = 1;
        for (int i = 1; i < threads && alive == threads; i++) {
            if (fibers[i].site != fibers[0].site) failed = 2;
        }
    }
}

// Returns 0; 1 if threads ended while others waited; 2 if they waited at different barriers.
static int run_kernel(void (*f)(char*, const long long*), unsigned grid, unsigned block, int cooperative, int backwards,
                      char* A, const long long* args) {
    body = f;
    memory = A;
    arguments = args;
    failed = 0;
    gridDim.x = grid;
    blockDim.x = block;
    for (unsigned b = 0; b < grid && !failed; b++) {
        blockIdx.x = backwards ? grid - 1 - b : b;
        if (cooperative) {
            run_block(backwards);
            continue;
        }
        for (unsigned t = 0; t < block; t++) {
            threadIdx.x = backwards ? block - 1 - t : t;
            f(A, args);
        }
    }
    return failed;
}
