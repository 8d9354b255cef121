// The beginning of every generated module: element types, lanes, conversions, functions, random numbers, reductions.
// The results are bitwise equal to those of the CPU device (`element.rs`, `cpu/math.rs`, `cpu/vector.rs`,
// `ir/src/random.rs`), as long as the compiler contracts nothing: every fused multiply-add is explicit.

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

struct bf16 { u16 bits; };
struct f16 { u16 bits; };
struct truth { u8 byte; };

// N consecutive elements, moved at once.
template <class T, int N> struct alignas(sizeof(T) * N) Pack { T x[N]; };

#define D __device__ __forceinline__
#define INF __uint_as_float(0x7f800000u)

// ---- reading and writing ----

template <int BYTES> struct Raw;
template <> struct Raw<1> { typedef u8 type; };
template <> struct Raw<2> { typedef u16 type; };
template <> struct Raw<4> { typedef u32 type; };
template <> struct Raw<8> { typedef u64 type; };
template <> struct Raw<16> { typedef uint4 type; };

// Memory that no store of the kernel writes.
template <class T> D T read_only(const T* p) {
    typedef typename Raw<sizeof(T)>::type R;
    union U { R raw; T value; D U() {} } u;
    u.raw = __ldg((const R*)p);
    return u.value;
}
template <class T> D T read(const T* p) { return *p; }

// ---- elements and lanes ----

D float lane(float x) { return x; }
D double lane(double x) { return x; }
D i64 lane(i64 x) { return x; }
D i64 lane(int x) { return x; }
D i64 lane(u8 x) { return x; }
D u8 lane(truth x) { return x.byte != 0; }
D float lane(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
D float lane(f16 x) {
    const u32 exponent_mask = 0x7c00u << 13;
    const u32 bits = ((u32)x.bits & 0x7fffu) << 13;
    const u32 exponent = bits & exponent_mask;
    const u32 normal = bits + ((127u - 15u) << 23);
    const u32 special = normal + ((128u - 16u) << 23);
    const u32 small = __float_as_uint(__uint_as_float(normal + (1u << 23)) - __uint_as_float(113u << 23));
    const u32 magnitude = exponent == exponent_mask ? special : exponent == 0 ? small : normal;
    return __uint_as_float(magnitude | ((u32)x.bits & 0x8000u) << 16);
}

D bf16 narrow_bf16(float x) {
    const u32 bits = __float_as_uint(x);
    const u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    bf16 r;
    r.bits = (u16)(x != x ? (bits >> 16 | 0x40u) : rounded);
    return r;
}
// After F. Giesen, float_to_half_fast3_rtne.
D f16 narrow_f16(float x) {
    const u32 denormal = ((127u - 15u) + (23u - 10u) + 1u) << 23;
    const u32 sign = __float_as_uint(x) & 0x80000000u;
    const u32 bits = __float_as_uint(x) ^ sign;
    const u32 small = __float_as_uint(__uint_as_float(bits) + __uint_as_float(denormal)) - denormal;
    const u32 odd = (bits >> 13) & 1u;
    const u32 normal = (bits + 0xc8000fffu + odd) >> 13;
    const u32 large = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const u32 finite = bits < (113u << 23) ? small : normal;
    f16 r;
    r.bits = (u16)((bits >= ((127u + 16u) << 23) ? large : finite) | (sign >> 16));
    return r;
}

// The nearest element of a type; integers saturate.
template <class T> struct To;
template <> struct To<float> { static D float of(float x) { return x; } };
template <> struct To<double> { static D double of(double x) { return x; } };
template <> struct To<i64> { static D i64 of(i64 x) { return x; } };
template <> struct To<int> {
    static D int of(i64 x) { return (int)(x < -2147483648ll ? -2147483648ll : x > 2147483647ll ? 2147483647ll : x); }
};
template <> struct To<u8> { static D u8 of(i64 x) { return (u8)(x < 0 ? 0 : x > 255 ? 255 : x); } };
template <> struct To<truth> { static D truth of(u8 x) { truth r; r.byte = x != 0; return r; } };
template <> struct To<bf16> { static D bf16 of(float x) { return narrow_bf16(x); } };
template <> struct To<f16> { static D f16 of(float x) { return narrow_f16(x); } };

// Conversions of lanes: floats are truncated and saturated to integers, NaN becomes 0.
template <class L> struct As;
template <> struct As<float> {
    static D float of(float x) { return x; }
    static D float of(double x) { return (float)x; }
    static D float of(i64 x) { return (float)x; }
    static D float of(u8 x) { return (float)x; }
};
template <> struct As<double> {
    static D double of(float x) { return x; }
    static D double of(double x) { return x; }
    static D double of(i64 x) { return (double)x; }
    static D double of(u8 x) { return (double)x; }
};
template <> struct As<i64> {
    static D i64 of(double x) {
        return x != x ? 0 : x >= 9223372036854775808.0 ? 0x7fffffffffffffffll
             : x <= -9223372036854775808.0 ? (-0x7fffffffffffffffll - 1) : (i64)x;
    }
    static D i64 of(float x) { return of((double)x); }
    static D i64 of(i64 x) { return x; }
    static D i64 of(u8 x) { return x; }
};
template <> struct As<u8> {
    static D u8 of(float x) { return x != 0.0f; }
    static D u8 of(double x) { return x != 0.0; }
    static D u8 of(i64 x) { return x != 0; }
    static D u8 of(u8 x) { return x; }
};
template <class T> D auto rounded(decltype(lane(T())) x) { return lane(To<T>::of(x)); }

// ---- combining ----

struct Sum {
    static D float of(float a, float b) { return a + b; }
    static D double of(double a, double b) { return a + b; }
    static D i64 of(i64 a, i64 b) { return (i64)((u64)a + (u64)b); }
    static D u8 of(u8 a, u8 b) { return a | b; }
};
struct Prod {
    static D float of(float a, float b) { return a * b; }
    static D double of(double a, double b) { return a * b; }
    static D i64 of(i64 a, i64 b) { return (i64)((u64)a * (u64)b); }
    static D u8 of(u8 a, u8 b) { return a & b; }
};
// NaN wins.
struct Max {
    static D float of(float a, float b) { return a != a || a > b ? a : b; }
    static D double of(double a, double b) { return a != a || a > b ? a : b; }
    static D i64 of(i64 a, i64 b) { return a > b ? a : b; }
    static D u8 of(u8 a, u8 b) { return a | b; }
};
struct Min {
    static D float of(float a, float b) { return a != a || a < b ? a : b; }
    static D double of(double a, double b) { return a != a || a < b ? a : b; }
    static D i64 of(i64 a, i64 b) { return a < b ? a : b; }
    static D u8 of(u8 a, u8 b) { return a & b; }
};

// Combines the values of T threads at a distance of X, in an order that depends only on their position. All of them get
// the result. All threads of the block must call it.
template <class Op, int X, int T, class V> D V together(V v, char* shared, int tid) {
    V* const place = (V*)shared;
    if (T == 1) return v;
    if (X > 1) {
        __syncthreads();
        place[tid] = v;
        __syncthreads();
        V r = place[tid % X];
        for (int i = 1; i < T; i++) r = Op::of(r, place[i * X + tid % X]);
        return r;
    }
    #pragma unroll
    for (int o = 1; o < (T < 32 ? T : 32); o *= 2) {
        const V other = __shfl_xor_sync(0xffffffffu, v, o);
        v = tid & o ? Op::of(other, v) : Op::of(v, other);
    }
    if (T <= 32) return v;
    __syncthreads();
    if (tid % 32 == 0) place[tid / 32] = v;
    __syncthreads();
    const V* const mine = place + tid / T * (T / 32);
    V r = mine[0];
    #pragma unroll
    for (int i = 1; i < T / 32; i++) r = Op::of(r, mine[i]);
    return r;
}

// ---- functions of f32, after `cpu/math.rs` ----

D float m_exp(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float magic = 12582912.0f;
    const float shifted = fmaf(x, 1.44269504f, magic);
    const float n = shifted - magic;
    float r = fmaf(n, -0.6933594f, x);
    r = fmaf(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r * r, r) + 1.0f;
    const int k = (int)(__float_as_uint(shifted) - __float_as_uint(magic));
    const int half = k >> 1;
    return p * __uint_as_float((u32)(half + 127) << 23) * __uint_as_float((u32)(k - half + 127) << 23);
}
D float m_log(float x) {
    const bool tiny = x < 1.17549435e-38f;
    float y = tiny ? x * 33554432.0f : x;
    const u32 bits = __float_as_uint(y) + (0x3f800000u - 0x3f3504f3u);
    const int e = (int)(bits >> 23) - 0x7f;
    const float k = (float)e - (tiny ? 25.0f : 0.0f);
    const float f = __uint_as_float((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    const float s = f / (2.0f + f);
    const float z = s * s;
    const float w = z * z;
    const float t1 = w * fmaf(w, 0.24279079f, 0.40000972f);
    const float t2 = z * fmaf(w, 0.28498787f, 0.6666666f);
    const float half = 0.5f * f * f;
    const float low = fmaf(s, half + (t1 + t2), k * 9.058001e-6f);
    y = (low - half + f) + k * 0.6931381f;
    y = x == 0.0f ? -INF : y;
    y = x < 0.0f ? __uint_as_float(0x7fc00000u) : y;
    return x < INF ? y : x;
}
D float m_tanh(float x) {
    const float a = fabsf(x);
    const float z = x * x;
    float p = -5.7049887e-3f;
    p = fmaf(p, z, 2.0639088e-2f);
    p = fmaf(p, z, -5.3739716e-2f);
    p = fmaf(p, z, 1.3331442e-1f);
    p = fmaf(p, z, -3.333328e-1f);
    const float small = fmaf(p * z, x, x);
    const float large = 1.0f - 2.0f / (m_exp(2.0f * a) + 1.0f);
    return a < 0.625f ? small : copysignf(large, x);
}
D float m_sigmoid(float x) { return 1.0f / (1.0f + m_exp(-x)); }
D float m_erf(float x) {
    const float a = fabsf(x);
    const float s = x * x;
    const float t = a > 4.0f ? 4.0f : a;
    const float ts = t * t;
    float r = fmaf(-1.7285347e-5f, t, 3.8319713e-4f);
    const float u = fmaf(-3.8839644e-3f, t, 2.4254622e-2f);
    r = fmaf(r, ts, u);
    r = fmaf(r, t, -1.0677788e-1f);
    r = fmaf(r, t, -6.348467e-1f);
    r = fmaf(r, t, -1.2871751e-1f);
    r = fmaf(r, t, -t);
    const float large = copysignf(1.0f - m_exp(r), x);
    r = -5.967617e-4f;
    r = fmaf(r, s, 4.9911942e-3f);
    r = fmaf(r, s, -2.6768135e-2f);
    r = fmaf(r, s, 1.12819925e-1f);
    r = fmaf(r, s, -3.7612534e-1f);
    r = fmaf(r, s, 1.2837917e-1f);
    const float small = fmaf(r, x, x);
    return a > 0.9277344f ? large : small;
}
D float m_sqrt(float x) { return sqrtf(x); }
D float m_rsqrt(float x) { return 1.0f / sqrtf(x); }
D float m_recip(float x) { return 1.0f / x; }
D float m_neg(float x) { return -x; }
D float m_abs(float x) { return fabsf(x); }
D float m_sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }
D float m_sin(float x) { return (float)sin((double)x); }
D float m_cos(float x) { return (float)cos((double)x); }
D float m_floor(float x) { return floorf(x); }
D float m_ceil(float x) { return ceilf(x); }
D float m_round(float x) { return rintf(x); }
D float m_fma(float a, float b, float c) { return fmaf(a, b, c); }

D double m_exp(double x) { return exp(x); }
D double m_log(double x) { return log(x); }
D double m_tanh(double x) { return tanh(x); }
D double m_sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
D double m_erf(double x) { return erf(x); }
D double m_sqrt(double x) { return sqrt(x); }
D double m_rsqrt(double x) { return 1.0 / sqrt(x); }
D double m_recip(double x) { return 1.0 / x; }
D double m_neg(double x) { return -x; }
D double m_abs(double x) { return fabs(x); }
D double m_sign(double x) { return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : x; }
D double m_sin(double x) { return sin(x); }
D double m_cos(double x) { return cos(x); }
D double m_floor(double x) { return floor(x); }
D double m_ceil(double x) { return ceil(x); }
D double m_round(double x) { return rint(x); }
D double m_fma(double a, double b, double c) { return fma(a, b, c); }

D i64 m_neg(i64 x) { return (i64)(0ull - (u64)x); }
D i64 m_abs(i64 x) { return x < 0 ? m_neg(x) : x; }
D i64 m_sign(i64 x) { return (x > 0) - (x < 0); }

D u8 m_not(u8 x) { return x == 0; }
D u8 m_and(u8 a, u8 b) { return a & b; }
D u8 m_or(u8 a, u8 b) { return a | b; }

D float m_sub(float a, float b) { return a - b; }
D double m_sub(double a, double b) { return a - b; }
D i64 m_sub(i64 a, i64 b) { return (i64)((u64)a - (u64)b); }
D float m_div(float a, float b) { return a / b; }
D double m_div(double a, double b) { return a / b; }
// Truncated; division by zero saturates like the float quotient: 0/0 = 0.
D i64 m_div(i64 a, i64 b) {
    return b == 0 ? (a > 0 ? 0x7fffffffffffffffll : a < 0 ? -0x7fffffffffffffffll : 0) : b == -1 ? m_neg(a) : a / b;
}
D double m_pow(double a, double b) { return pow(a, b); }
D float m_pow(float a, float b) { return (float)pow((double)a, (double)b); }
D double m_rem(double a, double b) { return a - b * floor(a / b); }
D float m_rem(float a, float b) { return (float)m_rem((double)a, (double)b); }
// The result has the divisor's sign; 0 if there is no such number.
D i64 m_rem(i64 a, i64 b) {
    const i64 r = b == 0 || b == -1 ? 0 : a % b;
    return r != 0 && (r ^ b) < 0 ? r + b : r;
}

// ---- random numbers: Philox4x32-10, after `ir/src/random.rs` ----

struct Words { u32 x, y; };
D Words philox(u64 seed, u64 stream, u64 counter) {
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
    u32 c0 = (u32)counter, c1 = (u32)(counter >> 32), c2 = (u32)stream, c3 = (u32)(stream >> 32);
    #pragma unroll
    for (int i = 0; i < 10; i++) {
        const u32 low0 = 0xD2511F53u * c0, high0 = __umulhi(0xD2511F53u, c0);
        const u32 low1 = 0xCD9E8D57u * c2, high1 = __umulhi(0xCD9E8D57u, c2);
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    Words w = {c0, c1};
    return w;
}
D double unit(u32 word) { return (double)(word >> 8) * (1.0 / 16777216.0); }
D double bernoulli(Words w, double p) { return unit(w.x) < p ? 1.0 : 0.0; }
D double uniform(Words w, double low, double high) { return low + (high - low) * unit(w.x); }
D double normal(Words w, double mean, double sd) {
    const double radius = sqrt(-2.0 * log(1.0 - unit(w.x)));
    return mean + sd * radius * cos(6.283185307179586 * unit(w.y));
}

// ---- the order of the k largest: descending, NaN first, the first of equal elements first ----

D bool ahead(double x, int i, double y, int j) {
    const bool nx = x != x, ny = y != y;
    if (nx || ny) return nx && ny ? i < j : nx;
    return x > y || (x == y && i < j);
}
