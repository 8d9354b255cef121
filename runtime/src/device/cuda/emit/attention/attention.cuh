// The beginning of modules with kernels of attention, after the prelude.
//
// A block of threads owns some rows (or, for the gradients of keys and values, columns) and streams over the columns
// (rows) in blocks. Every warp has its own rows: the same warp computes a score, turns it into a probability, and
// multiplies it further, mostly in the same registers (T. Dao, "FlashAttention-2", 2023). All three kernels are written
// once, for two engines that multiply tiles: `Tensor` (bf16, f16 on tensor cores) and `Plain` (f32, f64).

#ifdef EMULATED
D void copy_async(void* to, const void* from) { memcpy(to, from, 16); }
D void keep_order() {}
D void copy_commit() {}
template <int PENDING> D void copy_wait() {}
D float near_exp(float x) { return exp2f(x * 1.44269504f); }
D float larger(float a, float b) { return Max::of(a, b); }
D u32 pair(bf16, float low, float high) { return (u32)narrow_bf16(high).bits << 16 | narrow_bf16(low).bits; }
D u32 pair(f16, float low, float high) { return (u32)narrow_f16(high).bits << 16 | narrow_f16(low).bits; }
D void load_matrices(u32 (&r)[4], const void* row) { emulated_ldmatrix(r, row, false, __LINE__); }
D void load_transposed(u32 (&r)[4], const void* row) { emulated_ldmatrix(r, row, true, __LINE__); }
D float of_bf16(u16 x) { bf16 v; v.bits = x; return lane(v); }
D float of_f16(u16 x) { f16 v; v.bits = x; return lane(v); }
D void mma(bf16, float& c0, float& c1, float& c2, float& c3, const u32 (&a)[4], u32 b0, u32 b1) {
    emulated_mma(c0, c1, c2, c3, a, b0, b1, of_bf16, __LINE__);
}
D void mma(f16, float& c0, float& c1, float& c2, float& c3, const u32 (&a)[4], u32 b0, u32 b1) {
    emulated_mma(c0, c1, c2, c3, a, b0, b1, of_f16, __LINE__);
}
#else
extern __shared__ __align__(16) char dynamic_shared[];
D u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// Copies 16 bytes from global to shared memory, bypassing the registers.
D void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
// Prevents loads from moving across it, which would take registers for all of them at once.
D void keep_order() { asm volatile("" ::: "memory"); }
D void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> D void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
// The exponential to 2 units in the last place, and 0 below the normal numbers; for results that are rounded to 16
// bits.
D float near_exp(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
    return y;
}
D float larger(float a, float b) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
D u32 pair(bf16, float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
D u32 pair(f16, float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
// Loads four matrices of 8 rows of 16 bytes: lane l gives the address of row l % 8 of matrix l / 8. From each matrix it
// receives the pair at row l / 4 and columns 2 (l % 4), or at column l / 4 and rows 2 (l % 4).
D void load_matrices(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
D void load_transposed(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
// Computes c[16][8] += a[16][16] · b[16][8] in a warp. Of c, lane l holds rows l / 4 and l / 4 + 8, at columns 2 (l %
// 4) and the next one; of a, the same rows, at columns 2 (l % 4), the next one, and both plus 8; of b, the same as of a
// with rows and columns exchanged.
#define MMA(T, NAME)                                                                                             \
    D void mma(T, float& c0, float& c1, float& c2, float& c3, const u32 (&a)[4], u32 b0, u32 b1) {               \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, "            \
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                             \
                     : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)                                                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                            \
    }
MMA(bf16, "bf16")
MMA(f16, "f16")
#endif
D double larger(double a, double b) { return Max::of(a, b); }

D int lane_of() { return (int)(threadIdx.x & 31); }
D int warp_of() { return (int)(threadIdx.x >> 5); }
D int clamped(i64 x, int most) { return x < 0 ? 0 : x > most ? most : (int)x; }

// An element in its compute type.
template <class R, class T> D R real(T x) { return As<R>::of(lane(x)); }
template <class T, class S> struct Convert {
    static D T of(S x) { return To<T>::of(As<decltype(lane(T()))>::of(lane(x))); }
};
template <class T> struct Convert<T, T> { static D T of(T x) { return x; } };
template <class T> struct Plainly { typedef T type; };
template <class T> struct Plainly<const T> { typedef T type; };
template <class P> struct Pointed;
template <class T> struct Pointed<T*> { typedef typename Plainly<T>::type type; };
template <class T, class R> D T narrowed(R x) { return To<T>::of(As<decltype(lane(T()))>::of(x)); }

// Whether exp(masked − max) may differ from 0.
D bool counts(float max, float masked) { return !(max - masked > 104.0f); }
D bool counts(double max, double masked) { return !(max - masked > 746.0); }

// Whether the condition holds for any thread of the block.
D bool any_of_block(bool x) {
    __shared__ int flag;
    __syncthreads();
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (x) flag = 1;
    __syncthreads();
    return flag != 0;
}

// ---- engines ----

// Tensor cores. A thread holds 2 of the 16 rows of its warp, and pairs of columns in them.
template <class T_, int W> struct Tensor {
    typedef T_ T;
    typedef float R;
    static constexpr int OWN = 16 * W, ROWS = 2, LANES = 4, PER = 4, THREADS = 32 * W, PAD = 8;
    static D R exp(R x) { return near_exp(x); }
    static D int row(int i) { return warp_of() * 16 + lane_of() / 4 + 8 * i; }
    static D int column(int j) { return (j >> 1) * 8 + (lane_of() & 3) * 2 + (j & 1); }

    // s[own][stream] = Σ own · stream.
    template <int BS, int N> static D void product(R (&s)[2][BS / 4], const T* own, const T* stream) {
        constexpr int S = N + PAD;
        #pragma unroll
        for (int j = 0; j < BS / 4; j++) s[0][j] = s[1][j] = 0;
        const int l = lane_of();
        const T* const a_at = own + (warp_of() * 16 + l % 16) * S + l / 16 * 8;
        const T* const b_at = stream + (l / 16 * 8 + l % 8) * S + l / 8 % 2 * 8;
        // Unrolled further, operands are loaded too early and take all registers.
        #pragma unroll (N % 32 ? 1 : N > 64 ? 4 : 2)
        for (int k = 0; k < N; k += 16) {
            u32 a[4];
            load_matrices(a, a_at + k);
            #pragma unroll
            for (int n = 0; n < BS; n += 16) {
                u32 b[4];
                load_matrices(b, b_at + n * S + k);
                const int j = n / 4;
                mma(T(), s[0][j], s[0][j + 1], s[1][j], s[1][j + 1], a, b[0], b[1]);
                mma(T(), s[0][j + 2], s[0][j + 3], s[1][j + 2], s[1][j + 3], a, b[2], b[3]);
            }
        }
    }

    // sum[own][·] += Σ p[own][stream] · stream[·].
    template <int BS, int N> static D void accumulate(R (&sum)[2][N / 4], const R (&p)[2][BS / 4], const T* stream, R*) {
        constexpr int S = N + PAD;
        const int l = lane_of();
        const T* const b_at = stream + l % 16 * S + l / 16 * 8;
        #pragma unroll
        for (int k = 0; k < BS; k += 16) {
            const int q = k / 4;
            const u32 a[4] = {pair(T(), p[0][q], p[0][q + 1]), pair(T(), p[1][q], p[1][q + 1]),
                              pair(T(), p[0][q + 2], p[0][q + 3]), pair(T(), p[1][q + 2], p[1][q + 3])};
            #pragma unroll
            for (int n = 0; n < N; n += 16) {
                u32 b[4];
                load_transposed(b, b_at + k * S + n);
                const int j = n / 4;
                mma(T(), sum[0][j], sum[0][j + 1], sum[1][j], sum[1][j + 1], a, b[0], b[1]);
                mma(T(), sum[0][j + 2], sum[0][j + 3], sum[1][j + 2], sum[1][j + 3], a, b[2], b[3]);
            }
        }
    }
};

// Multiply-adds. 16 threads share I rows, and a thread holds every 16th column.
template <class R_, int I, int W> struct Plain {
    typedef R_ T;
    typedef R_ R;
    static constexpr int OWN = 2 * I * W, ROWS = I, LANES = 16, PER = 16, THREADS = 32 * W, PAD = 16 / sizeof(R_), V = PAD;
    static D R exp(R x) { return m_exp(x); }
    static D int row(int i) { return warp_of() * 2 * I + lane_of() / 16 * I + i; }
    static D int column(int j) { return lane_of() % 16 + 16 * j; }

    template <int BS, int N> static D void product(R (&s)[I][BS / 16], const R* own, const R* stream) {
        constexpr int S = N + PAD;
        #pragma unroll
        for (int i = 0; i < I; i++) {
            #pragma unroll
            for (int j = 0; j < BS / 16; j++) s[i][j] = 0;
        }
        #pragma unroll 2
        for (int k = 0; k < N; k += V) {
            Pack<R, V> a[I];
            #pragma unroll
            for (int i = 0; i < I; i++) a[i] = *(const Pack<R, V>*)(own + row(i) * S + k);
            #pragma unroll
            for (int j = 0; j < BS / 16; j++) {
                const Pack<R, V> b = *(const Pack<R, V>*)(stream + column(j) * S + k);
                #pragma unroll
                for (int i = 0; i < I; i++) {
                    #pragma unroll
                    for (int v = 0; v < V; v++) s[i][j] = m_fma(a[i].x[v], b.x[v], s[i][j]);
                }
            }
        }
    }

    template <int BS, int N>
    static D void accumulate(R (&sum)[I][N / 16], const R (&p)[I][BS / 16], const R* stream, R* scratch) {
        constexpr int S = N + PAD, P = BS + PAD;
        #pragma unroll
        for (int i = 0; i < I; i++) {
            #pragma unroll
            for (int j = 0; j < BS / 16; j++) scratch[row(i) * P + column(j)] = p[i][j];
        }
        __syncwarp();
        #pragma unroll 1
        for (int c = 0; c < BS; c += V) {
            Pack<R, V> a[I];
            #pragma unroll
            for (int i = 0; i < I; i++) a[i] = *(const Pack<R, V>*)(scratch + row(i) * P + c);
            #pragma unroll
            for (int v = 0; v < V; v++) {
                #pragma unroll
                for (int n = 0; n < N / 16; n++) {
                    const R b = stream[(c + v) * S + column(n)];
                    #pragma unroll
                    for (int i = 0; i < I; i++) sum[i][n] = m_fma(a[i].x[v], b, sum[i][n]);
                }
            }
        }
        __syncwarp();
    }
};

// The largest value, and the sum, over the lanes that share a row.
template <int LANES, class R> D R largest_of_row(R x) {
    #pragma unroll
    for (int o = LANES / 2; o > 0; o /= 2) x = larger(x, __shfl_xor_sync(0xffffffffu, x, o));
    return x;
}
template <int LANES, class R> D R sum_of_row(R x) {
    #pragma unroll
    for (int o = LANES / 2; o > 0; o /= 2) x = x + __shfl_xor_sync(0xffffffffu, x, o);
    return x;
}

// ---- tiles ----

// Loads elements [first, first + COUNT) × [0, N) of an operand with `limit` rows, padded with 0 up to the width FULL
// and beyond the last row. `at` gives the address of an element. V elements are moved at a time, by threads that are
// consecutive along the rows if ACROSS.
template <class E, int COUNT, int FULL, int N, int V, bool ACROSS, class At>
D void load_tile(typename E::T* tile, int first, int limit, At at) {
    typedef typename E::T T;
    constexpr int PER_ROW = FULL / V;
    for (int e = threadIdx.x; e < COUNT * PER_ROW; e += E::THREADS) {
        const int r = ACROSS ? e % COUNT : e / PER_ROW, i = (ACROSS ? e / COUNT : e % PER_ROW) * V;
        T* const to = tile + r * (FULL + E::PAD) + i;
        const bool there = first + r < limit && i < N;
        if (V > 1) {
            if (there) copy_async(to, at(first + r, i));
            else *(Pack<T, V>*)to = Pack<T, V>();
        } else {
            *to = T();
            if (there) {
                *to = Convert<T, typename Pointed<decltype(at(0, 0))>::type>::of(*at(first + r, i));
            }
        }
    }
}

// Writes sums to their rows.
template <class E, int FULL, int N, bool PAIRS, class S, class At>
D void store_tile(const S (&sum)[E::ROWS][FULL / E::PER], int first, int limit, At at) {
    typedef typename Pointed<decltype(at(0, 0))>::type T;
    #pragma unroll
    for (int i = 0; i < E::ROWS; i++) {
        const int r = first + E::row(i);
        if (r >= limit) continue;
        #pragma unroll
        for (int j = 0; j < FULL / E::PER; j += PAIRS ? 2 : 1) {
            const int w = E::column(j);
            if (w >= N) continue;
            if (PAIRS) {
                Pack<T, 2> both;
                both.x[0] = narrowed<T>(sum[i][j]);
                both.x[1] = narrowed<T>(sum[i][j + (PAIRS ? 1 : 0)]);
                *(Pack<T, 2>*)at(r, w) = both;
            } else {
                *at(r, w) = narrowed<T>(sum[i][j]);
            }
        }
    }
}

// The order in which blocks are streamed: first the visible blocks, then the others, if they count at all.
struct Order {
    int begin, seen, all;
    D Order(int from, int to, int n, int size) {
        begin = from / size;
        all = (n + size - 1) / size;
        seen = to > from ? (to + size - 1) / size - begin : 0;
    }
    D int at(int t) const { return t < seen ? begin + t : t - seen < begin ? t - seen : t; }
    D bool hides(int block) const { return block < begin || block >= begin + seen; }
};

// Blocks with shorter bodies: none, or those within a range.
struct Never {
    static constexpr bool EVER = false;
    D bool holds(int, int) const { return false; }
};
struct Within {
    static constexpr bool EVER = true;
    int from, to;
    D bool holds(int first, int last) const { return first >= from && last <= to; }
};

// ---- kernels ----

// Turns products into scores; −∞ beyond the last column.
template <class E, int BS, bool EVEN, class S>
D void to_scores(typename E::R (&s)[E::ROWS][BS / E::PER], int first, int rows, int c0, int columns, S score) {
    typedef typename E::R R;
    #pragma unroll
    for (int j = 0; j < BS / E::PER; j++) {
        const int c = c0 + E::column(j);
        #pragma unroll
        for (int i = 0; i < E::ROWS; i++) {
            const int r = first + E::row(i) < rows ? first + E::row(i) : rows - 1;
            const R x = score(s[i][j], r, EVEN || c < columns ? c : columns - 1);
            s[i][j] = EVEN || c < columns ? x : -(R)INF;
        }
        keep_order();
    }
}

// Rows [first, first + OWN): `load_query` and similar functions fill a tile from an index on, `out(row, w)` is the
// address of a result, and `keep(row, max, sum)` stores the statistics of a row. EVEN: the streamed extent consists of
// whole blocks.
template <class E, int BS, int DK, int DV, int N, bool EVEN, bool PAIRS, class C, class Q, class K, class V, class S, class CS, class Wt, class O, class Kp>
D void attention_forward(int first, int rows, int columns, Order order, C clear, typename E::R masked, Q load_query,
                         K load_key, V load_value, S score, CS clear_score, Wt weight, O out, Kp keep) {
    typedef typename E::T T;
    typedef typename E::R R;
    constexpr int I = E::ROWS, J = BS / E::PER;
    T* const own = (T*)dynamic_shared;
    T* const keys = own + E::OWN * (DK + E::PAD);
    T* const values = keys + BS * (DK + E::PAD);
    R* const scratch = (R*)(values + BS * (DV + E::PAD));
    R max[I], sum[I], acc[I][DV / E::PER];
    #pragma unroll
    for (int i = 0; i < I; i++) {
        max[i] = -(R)INF;
        sum[i] = 0;
        #pragma unroll
        for (int j = 0; j < DV / E::PER; j++) acc[i][j] = 0;
    }
    load_query(own, first);
    int stop = order.seen;
    load_key(keys, order.at(0) * BS);
    copy_commit();
    #pragma unroll 1
    for (int t = 0;; t++) {
        if (t == stop) {
            if (stop == order.all) break;
            bool low = false;
            #pragma unroll
            for (int i = 0; i < I; i++) low |= first + E::row(i) < rows && counts(max[i], masked);
            if (!any_of_block(low)) break;
            stop = order.all;
            load_key(keys, order.at(t) * BS);
            copy_commit();
        }
        const int c0 = order.at(t) * BS;
        load_value(values, c0);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        R s[I][J];
        E::template product<BS, DK>(s, own, keys);
        __syncthreads();
        if (t + 1 < stop) load_key(keys, order.at(t + 1) * BS);
        copy_commit();
        if (C::EVER && clear.holds(c0, c0 + BS)) to_scores<E, BS, EVEN>(s, first, rows, c0, columns, clear_score);
        else to_scores<E, BS, EVEN>(s, first, rows, c0, columns, score);
        #pragma unroll
        for (int i = 0; i < I; i++) {
            const int r = first + E::row(i) < rows ? first + E::row(i) : rows - 1;
            R most = max[i];
            #pragma unroll
            for (int j = 0; j < J; j++) most = larger(most, s[i][j]);
            most = largest_of_row<E::LANES>(most);
            // While only −∞ was seen: exp(−∞ − 0) = 0.
            const R base = most == -(R)INF ? (R)0 : most;
            const R scale = E::exp(max[i] - base);
            max[i] = most;
            R terms = 0;
            #pragma unroll
            for (int j = 0; j < J; j++) {
                const int c = c0 + E::column(j);
                const R p = E::exp(s[i][j] - base);
                terms += p;
                s[i][j] = weight(p, r, EVEN || c < columns ? c : columns - 1);
            }
            sum[i] = m_fma(sum[i], scale, terms);
            #pragma unroll
            for (int j = 0; j < DV / E::PER; j++) acc[i][j] = acc[i][j] * scale;
        }
        copy_wait<1>();
        __syncthreads();
        E::template accumulate<BS, DV>(acc, s, values, scratch);
        __syncthreads();
    }
    copy_wait<0>();
    #pragma unroll
    for (int i = 0; i < I; i++) {
        R total = sum_of_row<E::LANES>(sum[i]);
        // exp(−∞ − −∞), as in the definition.
        if (max[i] == -(R)INF && columns > 0) total = max[i] - max[i];
        const R scale = columns > 0 ? 1 / total : (R)0;
        #pragma unroll
        for (int j = 0; j < DV / E::PER; j++) acc[i][j] = acc[i][j] * scale;
        if (first + E::row(i) < rows && lane_of() % E::LANES == 0) keep(first + E::row(i), max[i], total);
    }
    store_tile<E, DV, N, PAIRS>(acc, first, rows, out);
}

struct Extents { int first, owners, q0, streamed; };

// Turns products s into gradients of products, and gradients g of weighted probabilities into those probabilities
// (without FIRST, only the latter).
template <class E, int BS, bool EVEN, bool OWNS_ROWS, bool FIRST, class R, class F, class S, class Wt, class G>
D void to_gradients(R (&s)[E::ROWS][BS / E::PER], R (&g)[E::ROWS][BS / E::PER], const Extents& at, const R (&max)[E::ROWS],
                    const R (&inverse)[E::ROWS], const R (&delta)[E::ROWS], const F& figures, S score, Wt weight, G gradient) {
    #pragma unroll
    for (int j = 0; j < BS / E::PER; j++) {
        const int u = E::column(j);
        const bool there = EVEN || at.q0 + u < at.streamed;
        const int q = there ? at.q0 + u : at.streamed - 1;
        #pragma unroll
        for (int i = 0; i < E::ROWS; i++) {
            const int o = at.first + E::row(i) < at.owners ? at.first + E::row(i) : at.owners - 1;
            const int r = OWNS_ROWS ? o : q, c = OWNS_ROWS ? q : o;
            const R m = OWNS_ROWS ? max[i] : figures[0][u], inv = OWNS_ROWS ? inverse[i] : figures[1][u];
            const R p = E::exp(score(s[i][j], r, c) - m) * inv;
            if (FIRST) {
                const R dl = OWNS_ROWS ? delta[i] : figures[2][u];
                const R w = weight((R)1, r, c);
                const R d = gradient(p * (g[i][j] * w - dl), s[i][j], r, c);
                s[i][j] = there ? d : (R)0;
                g[i][j] = there ? p * w : (R)0;
            } else {
                g[i][j] = there ? weight(p, r, c) : (R)0;
            }
        }
        keep_order();
    }
}

// Either rows are owned: the `first` operands are queries and keys, and the kernel computes the gradient of the
// queries, FIRST. Or columns are owned, and it computes the gradients of the keys, FIRST, and of the values, SECOND.
// The `second` operands are the gradient of the result and the values. `batch` sets the batch indices that the owner
// does not have, one after the other.
template <class E, int BS, int D1, int D2, int N1, int N2, bool EVEN, bool OWNS_ROWS, bool FIRST, bool SECOND, bool PAIRS1, bool PAIRS2,
          class B, class L1, class L2, class L3, class L4, class Mx, class Sm, class Dl, class S, class CS, class Wt, class G, class CG, class O1, class O2, class C>
D void attention_backward(int first, int owners, int streamed, u32 batches, Order order, C clear, typename E::R masked, B batch,
                          L1 load_own_first, L2 load_own_second, L3 load_first, L4 load_second, Mx max_of, Sm sum_of,
                          Dl delta_of, S score, CS clear_score, Wt weight, G gradient, CG clear_gradient, O1 out_first,
                          O2 out_second) {
    typedef typename E::T T;
    typedef typename E::R R;
    constexpr int I = E::ROWS, J = BS / E::PER;
    T* const own_first = (T*)dynamic_shared;
    T* const own_second = own_first + E::OWN * (D1 + E::PAD);
    T* const firsts = own_second + (FIRST ? E::OWN * (D2 + E::PAD) : 0);
    T* const seconds = firsts + BS * (D1 + E::PAD);
    R* const scratch = (R*)(seconds + BS * (D2 + E::PAD));
    // Statistics of streamed rows: largest score, 1 / sum, delta.
    __shared__ R figures[3][OWNS_ROWS ? 1 : BS];
    R sum1[I][FIRST ? D1 / E::PER : 1], sum2[I][SECOND ? D2 / E::PER : 1];
    #pragma unroll
    for (int i = 0; i < I; i++) {
        #pragma unroll
        for (int j = 0; j < (FIRST ? D1 / E::PER : 1); j++) sum1[i][j] = 0;
        #pragma unroll
        for (int j = 0; j < (SECOND ? D2 / E::PER : 1); j++) sum2[i][j] = 0;
    }
    #pragma unroll 1
    for (u32 b = 0; b < batches; b++) {
        batch(b);
        load_own_first(own_first, first);
        if (FIRST) load_own_second(own_second, first);
        R max[I], inverse[I], delta[I];
        bool low = false;
        #pragma unroll
        for (int i = 0; i < I; i++) {
            const int r = first + E::row(i);
            max[i] = inverse[i] = delta[i] = 0;
            if (OWNS_ROWS && r < owners) {
                max[i] = max_of(r);
                inverse[i] = 1 / sum_of(r);
                delta[i] = delta_of(r);
                low |= counts(max[i], masked);
            }
        }
        if (!OWNS_ROWS && order.seen < order.all) {
            for (int r = threadIdx.x; r < streamed; r += E::THREADS) low |= order.hides(r / BS) && counts(max_of(r), masked);
        }
        const int stop = order.seen < order.all && any_of_block(low) ? order.all : order.seen;
        if (stop > 0) load_second(seconds, order.at(0) * BS);
        copy_commit();
        if (stop > 0) load_first(firsts, order.at(0) * BS);
        copy_commit();
        #pragma unroll 1
        for (int t = 0; t < stop; t++) {
            const int q0 = order.at(t) * BS;
            if (!OWNS_ROWS) {
                for (int u = threadIdx.x; u < BS; u += E::THREADS) {
                    const int r = q0 + u < streamed ? q0 + u : streamed - 1;
                    figures[0][u] = max_of(r);
                    figures[1][u] = 1 / sum_of(r);
                    if (FIRST) figures[2][u] = delta_of(r);
                }
            }
            R s[I][J], g[I][J];
            copy_wait<1>();
            __syncthreads();
            if (FIRST) E::template product<BS, D2>(g, own_second, seconds);
            copy_wait<0>();
            __syncthreads();
            E::template product<BS, D1>(s, own_first, firsts);
            const Extents at = {first, owners, q0, streamed};
            if (C::EVER && clear.holds(q0, q0 + BS)) {
                to_gradients<E, BS, EVEN, OWNS_ROWS, FIRST>(s, g, at, max, inverse, delta, figures, clear_score, weight, clear_gradient);
            } else {
                to_gradients<E, BS, EVEN, OWNS_ROWS, FIRST>(s, g, at, max, inverse, delta, figures, score, weight, gradient);
            }
            if constexpr (SECOND) E::template accumulate<BS, D2>(sum2, g, seconds, scratch);
            __syncthreads();
            if (t + 1 < stop) load_second(seconds, order.at(t + 1) * BS);
            copy_commit();
            if constexpr (FIRST) E::template accumulate<BS, D1>(sum1, s, firsts, scratch);
            __syncthreads();
            if (t + 1 < stop) load_first(firsts, order.at(t + 1) * BS);
            copy_commit();
        }
        copy_wait<0>();
        // The tiles of the next batch overwrite these.
        __syncthreads();
    }
    if constexpr (FIRST) store_tile<E, D1, N1, PAIRS1>(sum1, first, owners, out_first);
    if constexpr (SECOND) store_tile<E, D2, N2, PAIRS2>(sum2, first, owners, out_second);
}

// delta = Σ grad_out · out of a row, computed by a warp.
template <class R, class X, class Y> D R attention_delta(int width, X grad_out, Y out) {
    R sum = 0;
    for (int w = lane_of(); w < width; w += 32) sum = m_fma(grad_out(w), out(w), sum);
    return sum_of_row<32>(sum);
}

// ---- without tiles: one row at a time, for operands of any width ----

constexpr int ALONE = 256;

// Sums of coefficients in shared memory times streamed elements, 4 · ALONE results at a time.
template <class R, class X> D void add_up(R (&acc)[4], const R* coefficients, int count, int first, int n, X element) {
    for (int q = 0; q < count; q++) {
        #pragma unroll
        for (int u = 0; u < 4; u++) {
            const int i = first + (int)threadIdx.x + u * ALONE;
            if (i < n) acc[u] = m_fma(coefficients[q], element(q, i), acc[u]);
        }
    }
}

template <class R, class Pr, class S, class Wt, class V, class O, class Kp>
D void attention_row(int row, int columns, int width, Pr product, S score, Wt weight, V value, O out, Kp keep) {
    __shared__ R shared[ALONE];
    const int tid = threadIdx.x;
    R max = -(R)INF, sum = 0;
    for (int c0 = 0; c0 < columns; c0 += ALONE) {
        const int c = c0 + tid;
        const R x = c < columns ? score(product(row, c), row, c) : -(R)INF;
        const R most = Max::of(max, together<Max, 1, ALONE>(x, (char*)shared, tid));
        const R base = most == -(R)INF ? (R)0 : most;
        sum = sum * m_exp(max - base) + together<Sum, 1, ALONE>(m_exp(x - base), (char*)shared, tid);
        max = most;
    }
    if (max == -(R)INF && columns > 0) sum = max - max;
    if (tid == 0) keep(row, max, sum);
    for (int w0 = 0; w0 < width; w0 += 4 * ALONE) {
        R acc[4] = {0, 0, 0, 0};
        for (int c0 = 0; c0 < columns; c0 += ALONE) {
            const int c = c0 + tid;
            __syncthreads();
            if (c < columns) shared[tid] = weight(m_exp(score(product(row, c), row, c) - max), row, c) / sum;
            __syncthreads();
            const auto element = [&](int q, int w) { return value(c0 + q, w); };
            add_up(acc, shared, columns - c0 < ALONE ? columns - c0 : ALONE, w0, width, element);
        }
        for (int u = 0; u < 4; u++) {
            const int w = w0 + tid + u * ALONE;
            if (w < width) out(row, w, acc[u]);
        }
    }
}

// The gradient of one row of an operand with n elements: FIRST for queries and keys.
template <class R, bool OWNS_ROWS, bool FIRST, class B, class Pr, class Gr, class Mx, class Sm, class Dl, class S, class Wt, class G, class X, class O>
D void attention_gradient(int owner, int streamed, int n, u32 batches, B batch, Pr product, Gr of_result, Mx max_of,
                          Sm sum_of, Dl delta_of, S score, Wt weight, G gradient, X streamed_element, O out) {
    __shared__ R shared[ALONE];
    const int tid = threadIdx.x;
    for (int i0 = 0; i0 < n; i0 += 4 * ALONE) {
        R acc[4] = {0, 0, 0, 0};
        for (u32 b = 0; b < batches; b++) {
            batch(b);
            for (int q0 = 0; q0 < streamed; q0 += ALONE) {
                const int q = q0 + tid, r = OWNS_ROWS ? owner : q, c = OWNS_ROWS ? q : owner;
                R x = 0;
                if (q < streamed) {
                    const R y = product(r, c);
                    const R p = m_exp(score(y, r, c) - max_of(r)) / sum_of(r);
                    x = FIRST ? gradient(p * (weight(of_result(r, c), r, c) - delta_of(r)), y, r, c) : weight(p, r, c);
                }
                __syncthreads();
                shared[tid] = x;
                __syncthreads();
                const auto element = [&](int q, int i) { return streamed_element(q0 + q, i); };
                add_up(acc, shared, streamed - q0 < ALONE ? streamed - q0 : ALONE, i0, n, element);
            }
        }
        for (int u = 0; u < 4; u++) {
            const int i = i0 + tid + u * ALONE;
            if (i < n) out(owner, i, acc[u]);
        }
    }
}
