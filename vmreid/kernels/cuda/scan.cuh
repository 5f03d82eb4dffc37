// What the kernels for one state and for several share.
//
// Inside, delta counts in units of ln 2: exp(delta A) is then exp2(delta A), and softplus is log2(1 + exp2(z log2 e)). So
// does u = delta x, and a state: H = h / ln 2.

constexpr int K = 4;  // directions
constexpr float LN2 = 0.6931471805599453f, LOG2E = 1.4426950408889634f;

// log2(1 + exp2(z)).
DEVICE float softplus2(float z) {
    const float e = exp2_(z);
    if (IO == 32) {
        float near = e * (LOG2E - e * (0.5f * LOG2E - e * (0.33333333f * LOG2E - e * (0.25f * LOG2E))));
        return less_(30.f, z, z, less_(e, 0.03125f, near, log2_(1.f + e)));
    }
    float near = e * (LOG2E - e * (0.5f * LOG2E));  // what z has of digits, so have these
    return less_(30.f, z, z, less_(e, 0.0078125f, near, log2_(1.f + e)));
}

// 1 / (1 + exp2(-z)), the derivative of softplus.
DEVICE float sigmoid2(float z) {
    const float e = exp2_(z);
    return less_(30.f, z, 1.f, e * reciprocal_(1.f + e));
}

// Sums COUNT values over LANES lanes that lie STEP apart, by the exchange of halves: a lane keeps one of its two and sends the
// other, until the i-th lane is left with the i-th run of COUNT / LANES sums.
template <int COUNT, int LANES, int STEP>
DEVICE void halve(int lane, float* v) {
    if constexpr (LANES > 1) {
        bool upper = lane & (LANES / 2 * STEP);
#pragma unroll
        for (int i = 0; i < COUNT / 2; ++i) {
            float sent = upper ? v[i] : v[i + COUNT / 2], mine = upper ? v[i + COUNT / 2] : v[i];
            v[i] = mine + __shfl_xor_sync(~0u, sent, LANES / 2 * STEP);
        }
        halve<COUNT / 2, LANES / 2, STEP>(lane, v);
    }
}

// What both kernels begin with.
#define WALK(TYPE)                                                                                                           \
    const io *x_, const io *dt_, long long x_b, long long x_l, long long dt_b, long long dt_l, long long dt_k,           \
        const TYPE *BC_BLKN, const float *A_KDN, const float *D_KD, const float *bias_KD, int L, int D, int H, int W, long long magic_
