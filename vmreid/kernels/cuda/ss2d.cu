// The four directional selective scans of a map, with softplus and bias of delta, D and the merge: one forward and one
// recomputing backward. Compiled at first use (see fused.py) for one element type and one d_state:
//   N = NS * Q states: a lane keeps NS of them for two channels, Q lanes share a channel's states, S lanes share its time;
//   T steps are taken together, their states in registers.
//
// A warp owns 16 channels (a sector of 32 bytes in half precision) of one picture in one direction. It walks the path in
// tiles of 32 steps; the two next ones are copied to shared memory while one is computed. Two directions that read the same path
// from its two ends run at the same time: until they meet, neither is where the other has been, so both add to y (and dx)
// without atomics, in the same order in every run. Then rows give way to columns.
// A step that is not there has delta = 0, so it keeps the state; a channel that is not there has x = dy = 0.
//
// dB and dC are sums over all channels: over a warp's 16 here, over warps by the caller.
// Units are those of scan.cuh.

constexpr int TILE = 32;   // steps; the forward keeps the state before each tile for the backward
constexpr int PAIRS = 8;   // of channels a warp
constexpr int GROUPS = WARPS / 2;    // of 16 channels a block
constexpr int SEGMENT = PAIRS * Q;   // lanes that share a segment of time
constexpr int ROWS = S == 1 ? TILE : TILE + 3;  // of a tile in shared memory: see row()
static_assert(Q > 1 && Q * S == 4 && N == NS * Q, "a warp is 8 pairs of channels, 4 lanes each");

// Where the steps of a tile lie: where lanes read 8 steps apart, a row is left out after 8, so that they meet other banks.
DEVICE constexpr int row(int step) { return S == 1 ? step : step + step / 8; }

struct Lane {
    int lane, pair, q, s, batch, d, channels;
    bool reversed, there;
    DEVICE Lane(int D) {
        lane = threadIdx.x % 32, pair = lane % PAIRS, q = lane / PAIRS % Q, s = lane / SEGMENT;
        int warp = threadIdx.x / 32, first = (blockIdx.x * GROUPS + warp % GROUPS) * 2 * PAIRS;
        reversed = warp >= GROUPS, batch = blockIdx.y;
        d = first + 2 * pair, there = d < D, channels = D - first;
    }
    // The i-th of the 8 steps of a tile that this lane prepares and finishes for its pair.
    template <int T>
    DEVICE int own(int i) const {
        constexpr int OWN = T / Q;
        return i / OWN * (S * T) + s * T + q * OWN + i % OWN;
    }
};

// What a direction reads: token `place(tile, step)` of the map, row-major.
struct Path {
    int length, tiles, H, W;
    unsigned magic;  // ceil(2^32 / H): position / H is the high word of position * magic
    bool columns, reversed;
    DEVICE int steps(int tile) const { return min(TILE, length - tile * TILE); }
    DEVICE int place(int tile, int step) const {
        int there = steps(tile), t = min(step, there - 1);
        int position = tile * TILE + (reversed ? there - 1 - t : t);
        if (!columns) return position;
        int column = __umulhi(unsigned(position), magic);
        return (position - column * H) * W + column;
    }
};

// Begins to copy 32 rows of BYTES; a lane knows the place of its row.
template <int BYTES>
DEVICE void fetch(const Lane& at, void* to, const void* from, int stride, int place, int there = BYTES) {
    constexpr int CHUNK = BYTES % 16 == 0 ? 16 : BYTES % 8 == 0 ? 8 : 4, PARTS = BYTES / CHUNK;
    const int part = at.lane % PARTS * CHUNK;
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
        const int r = (i * 32 + at.lane) / PARTS;
        const long long token = PARTS == 1 ? place : __shfl_sync(~0u, place, r);
        copy_async<CHUNK>((char*)to + row(r) * BYTES + part, (const char*)from + token * stride + part, part < there);
    }
}

template <int COUNT>
DEVICE void read(const float* from, float* to) {
    if constexpr (COUNT == 4) {
        float4 v = *reinterpret_cast<const float4*>(from);
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else if constexpr (COUNT == 2) {
        float2 v = *reinterpret_cast<const float2*>(from);
        to[0] = v.x, to[1] = v.y;
    } else
        to[0] = from[0];
}

// Sums COUNT values over LANES lanes that lie STEP apart; the i-th lane is left with the i-th run of COUNT / LANES sums.
// Through shared memory where a lane is left with four: a third of the instructions that the exchange of halves takes.
template <int COUNT, int LANES, int STEP>
DEVICE void fold(const Lane& at, float* v, float4* buffer) {
    if constexpr (LANES > 1 && COUNT == 4 * LANES) {
        constexpr int OTHERS = 32 / LANES;
        const int mine = at.lane / STEP % LANES, other = STEP == 1 ? at.lane / LANES : at.lane % STEP;
        auto slot = [&](int to, int from) {  // eight lanes meet 32 banks, when they write and when they read
            return STEP == 1 ? (other * LANES + to) * LANES + (from ^ to) : (to * LANES + from) * OTHERS + other;
        };
        static_assert(STEP == 1 || STEP * LANES == 32, "the lanes of a warp");
        __syncwarp();
#pragma unroll
        for (int to = 0; to < LANES; ++to) buffer[slot(to, mine)] = make_float4(v[4 * to], v[4 * to + 1], v[4 * to + 2], v[4 * to + 3]);
        __syncwarp();
        float4 sum = buffer[slot(mine, 0)];
#pragma unroll
        for (int from = 1; from < LANES; ++from) {
            const float4 one = buffer[slot(mine, from)];
            sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
        }
        v[0] = sum.x, v[1] = sum.y, v[2] = sum.z, v[3] = sum.w;
    } else if constexpr (LANES > 1) {
        halve<COUNT, LANES, STEP>(at.lane, v);
    }
}

// Of segments that were run from zero (`total` decay, `end` state): from the state before all of them to the one before the
// lane's own (`before`) and the one after all (`state`).
DEVICE void join(const Lane& at, float* total, float* end, float* state, float* before, bool backwards) {
    int rank = backwards ? S - 1 - at.s : at.s;
#pragma unroll
    for (int n = 0; n < 2 * NS; ++n) {
#pragma unroll
        for (int off = 1; off < S; off *= 2) {
            int from = (at.lane + (backwards ? off : -off) * SEGMENT) & 31;
            float d = __shfl_sync(~0u, total[n], from), e = __shfl_sync(~0u, end[n], from);
            if (rank >= off) end[n] += total[n] * e, total[n] *= d;
        }
        float after = end[n] + total[n] * state[n];
        float left = __shfl_sync(~0u, after, (at.lane + (backwards ? SEGMENT : -SEGMENT)) & 31);
        before[n] = rank == 0 ? state[n] : left;
        state[n] = __shfl_sync(~0u, after, at.lane % SEGMENT + (backwards ? 0 : S - 1) * SEGMENT);
    }
}

// Of one round of S * T steps: the state before the lane's segment, `state` moved on by the round, and with S > 1 the decay
// of the segment. step(j) is delta and u of both channels at the j-th step of the segment.
template <int T, typename Step>
DEVICE void run(const Lane& at, Step step, const float* bc, const float* A, float* state, float* before, float* decay) {
    float total[2 * NS], end[2 * NS], sum[2] = {0.f, 0.f};
#pragma unroll
    for (int n = 0; n < 2 * NS; ++n) end[n] = S == 1 ? state[n] : 0.f, before[n] = state[n];
#pragma unroll
    for (int j = 0; j < T; ++j) {
        float B[NS];
        read<NS>(bc + row(j) * 2 * N, B);
        const float4 v = step(j);
        sum[0] += v.x, sum[1] += v.y;
#pragma unroll
        for (int n = 0; n < NS; ++n) {
            end[n] = exp2_(v.x * A[n]) * end[n] + v.z * B[n];
            end[NS + n] = exp2_(v.y * A[NS + n]) * end[NS + n] + v.w * B[n];
        }
    }
    if constexpr (S == 1) {
#pragma unroll
        for (int n = 0; n < 2 * NS; ++n) state[n] = end[n];
    } else {
#pragma unroll
        for (int n = 0; n < 2 * NS; ++n) decay[n] = total[n] = exp2_(sum[n / NS] * A[n]);
        join(at, total, end, state, before, false);
    }
}

// A value that has arrived. What is loaded before a loop and first used inside would make every turn wait, not for it, but
// for the later loads that share its scoreboard.
DEVICE float settled(const Lane& at, float v) { return __shfl_sync(~0u, v, at.lane); }

DEVICE void load_states(const Lane& at, const float* from, long long first, float* to) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        if (from && at.there)
            read<NS>(from + (first + at.d + c) * N + at.q * NS, to + c * NS);
        else {
#pragma unroll
            for (int n = 0; n < NS; ++n) to[c * NS + n] = 0.f;
        }
    }
}

DEVICE void store_states(const Lane& at, float* to, long long first, const float* from, float unit) {
    if (!at.there || at.s) return;
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int n = 0; n < NS; ++n) to[(first + at.d + c) * N + at.q * NS + n] = from[c * NS + n] * unit;
}

// What both kernels begin a direction with.
#define DIRECTION                                                                                                      \
    Path path{L, (L + TILE - 1) / TILE, H, W, unsigned(magic_), columns == 1, at.reversed};                              \
    int k = columns + 2 * at.reversed;                                                                                 \
    const io* x = x_ + at.batch * x_b + at.d - 2 * at.pair;                                                            \
    const io* dt = dt_ + at.batch * dt_b + k * dt_k + at.d - 2 * at.pair;                                              \
    const float* bc = BC_BLKN + ((long long)at.batch * L * K + k) * 2 * N;                                             \
    const int there = at.channels * int(sizeof(io)), stored = at.there ? TILE : 0;                                     \
    const long long map = (long long)at.batch * K + k;                                                                 \
    float A[2 * NS], skip[2], bias[2];                                                                                 \
    load_states(at, A_KDN, k * D, A);                                                                                  \
    for (int c = 0; c < 2; ++c) {                                                                                      \
        skip[c] = at.there ? D_KD[k * D + at.d + c] : 0.f;                                                             \
        bias[c] = at.there ? bias_KD[k * D + at.d + c] * LOG2E : 0.f;                                                  \
        skip[c] = settled(at, skip[c]), bias[c] = settled(at, bias[c]);                                                \
    }                                                                                                                  \
    for (int n = 0; n < 2 * NS; ++n) A[n] = settled(at, A[n]);

struct alignas(16) Forward {
    float4 delta_u[ROWS * PAIRS], folded[4 * 32];
    io x[2][ROWS * 2 * PAIRS], dt[2][ROWS * 2 * PAIRS];
    alignas(16) float bc[2][(ROWS * 2 * N + 3) / 4 * 4];
};
static_assert(sizeof(Forward) * WARPS == FORWARD_BYTES, "as in fused.py");

extern "C" KERNEL(3) ss2d_forward(WALK(float), io* y_BLD, float* last_BKDN, float* kept_BKIDN) {
    constexpr int T = 8, OWN = T / Q;
    SHARED(memory);
    Lane at(D);
    Forward& shared = reinterpret_cast<Forward*>(memory)[threadIdx.x / 32];
    io2* y = reinterpret_cast<io2*>(y_BLD + (long long)at.batch * L * D + (at.there ? at.d : 0));
    for (int columns = 0; columns < 2; ++columns) {
        DIRECTION
        float state[2 * NS];
#pragma unroll
        for (int n = 0; n < 2 * NS; ++n) state[n] = 0.f;
        auto tile_of = [&](int i) { return at.reversed ? path.tiles - 1 - i : i; };
        auto fetch_tile = [&](int i) {
            if (i < path.tiles) {
                const int place = path.place(tile_of(i), at.lane);
                fetch<2 * PAIRS * sizeof(io)>(at, shared.x[i % 2], x, int(x_l * sizeof(io)), place, there);
                fetch<2 * PAIRS * sizeof(io)>(at, shared.dt[i % 2], dt, int(dt_l * sizeof(io)), place, there);
                fetch<2 * N * sizeof(float)>(at, shared.bc[i % 2], bc, K * 2 * N * sizeof(float), place);
            }
            end_copies();
        };
        fetch_tile(0);
        fetch_tile(1);
        for (int i = 0; i < path.tiles; ++i) {
            const int tile = tile_of(i), offset = path.place(tile, at.lane) * (D / 2), steps = path.steps(tile);
            const bool middle = path.tiles % 2 && i == path.tiles / 2;
            if (i == path.tiles / 2) __syncthreads();
            if (middle && at.reversed) __syncthreads();
            const bool first = columns == 0 && (i < path.tiles / 2 || (middle && !at.reversed));
            wait_for_copies<1>();
            __syncwarp();
            io2 x_own[8], y_own[8];
            int to[8];
            float4 own[8];
#pragma unroll
            for (int o = 0; o < 8; ++o) {
                to[o] = __shfl_sync(~0u, offset, at.own<T>(o));
                y_own[o] = y[to[o]];  // where nothing is yet, too: a branch would wait for it here
            }
#pragma unroll
            for (int o = 0; o < 8; ++o) {
                const int cell = row(at.own<T>(o)) * PAIRS + at.pair;
                x_own[o] = reinterpret_cast<const io2*>(shared.x[i % 2])[cell];
                io2 z = reinterpret_cast<const io2*>(shared.dt[i % 2])[cell];
                const float d0 = softplus2(low(z) * LOG2E + bias[0]), d1 = softplus2(high(z) * LOG2E + bias[1]);
                own[o] = make_float4(d0, d1, d0 * low(x_own[o]), d1 * high(x_own[o]));
            }
            if (steps < TILE) {
#pragma unroll
                for (int o = 0; o < 8; ++o)
                    if (at.own<T>(o) >= steps) own[o] = make_float4(0.f, 0.f, 0.f, 0.f);
            }
#pragma unroll
            for (int o = 0; o < 8; ++o) shared.delta_u[row(at.own<T>(o)) * PAIRS + at.pair] = own[o];
            __syncwarp();
            if (kept_BKIDN) store_states(at, kept_BKIDN, (map * path.tiles + tile) * D, state, 1.f);
            const int end = min(steps, stored);
#pragma unroll
            for (int r = 0; r < TILE / (S * T); ++r) {
                const int begin = row(r * S * T + at.s * T);
                const float* bc_j = shared.bc[i % 2] + begin * 2 * N + at.q * NS;
                auto step = [&](int j) { return shared.delta_u[(begin + row(j)) * PAIRS + at.pair]; };
                float before[2 * NS], decay[2 * NS], sums[2 * T];
                float* h = state;
                if constexpr (S > 1) {
                    run<T>(at, step, bc_j, A, state, before, decay);
                    h = before;
                }
#pragma unroll
                for (int j = 0; j < T; ++j) {
                    float B[NS], C[NS], y0 = 0.f, y1 = 0.f;
                    read<NS>(bc_j + row(j) * 2 * N, B);
                    read<NS>(bc_j + row(j) * 2 * N + N, C);
                    const float4 v = step(j);
#pragma unroll
                    for (int n = 0; n < NS; ++n) {
                        h[n] = exp2_(v.x * A[n]) * h[n] + v.z * B[n];
                        h[NS + n] = exp2_(v.y * A[NS + n]) * h[NS + n] + v.w * B[n];
                        y0 += C[n] * h[n], y1 += C[n] * h[NS + n];
                    }
                    sums[2 * j] = y0, sums[2 * j + 1] = y1;
                }
                fold<2 * T, Q, PAIRS>(at, sums, shared.folded);
#pragma unroll
                for (int o = 0; o < OWN; ++o) {
                    const int mine = r * OWN + o;
                    float y0 = LN2 * sums[2 * o] + skip[0] * low(x_own[mine]), y1 = LN2 * sums[2 * o + 1] + skip[1] * high(x_own[mine]);
                    if (!first) y0 += low(y_own[mine]), y1 += high(y_own[mine]);
                    if (at.own<T>(mine) < end) y[to[mine]] = pack(y0, y1);
                }
            }
            __syncwarp();
            fetch_tile(i + 2);
            if (middle && !at.reversed) __syncthreads();
        }
        store_states(at, last_BKDN, map * D, state, LN2);
        __syncthreads();
    }
}

struct alignas(16) Backward {
    static constexpr int ROUNDS = TILE / (S * BACK);
    float4 folded[BACK * 2 * NS / 4 * 32];
    float start[ROUNDS > 1 ? ROUNDS - 1 : 1][2 * NS * 32];
    alignas(16) float bc[2][(ROWS * 2 * N + 3) / 4 * 4];
    alignas(16) float2 delta[ROWS * PAIRS];
    alignas(16) io x[2][ROWS * 2 * PAIRS], dt[2][ROWS * 2 * PAIRS], dy[2][ROWS * 2 * PAIRS];
};
static_assert(sizeof(Backward) * WARPS == BACKWARD_BYTES, "as in fused.py");

// Adjoint g_t = C_t dy_t + r_t, r_{t-1} = decay_t g_t, from the last step to the first; what follows from it:
//   dC_t = h_t dy_t     dB_t = g_t delta_t x_t     dx_t = delta_t (B_t . g_t) + D dy_t
//   dA = sum_t r_{t-1} h_{t-1} delta_t             ddelta_t = A . (r_{t-1} h_{t-1}) + x_t (B_t . g_t)
extern "C" KERNEL(2) ss2d_backward(WALK(float), const io* dy_BLD, const float* dlast_BKDN, const float* kept_BKIDN, io* dx_BLD,
                                   io* ddt_BLKD, float* dA_BKDN, float* dD_BKD, float* dbias_BKD, io* dBC_GBLKQ) {
    constexpr int T = BACK, OWN = T / Q, ROUNDS = Backward::ROUNDS;
    constexpr int SUMS = T * 2 * NS / PAIRS;  // of dB and dC, that a lane is left with
    SHARED(memory);
    Lane at(D);
    Backward& shared = reinterpret_cast<Backward*>(memory)[threadIdx.x / 32];
    const long long picture = (long long)at.batch * L;
    const io* dy = dy_BLD + picture * D + at.d - 2 * at.pair;
    io2* dx = reinterpret_cast<io2*>(dx_BLD + picture * D + (at.there ? at.d : 0));
    for (int columns = 0; columns < 2; ++columns) {
        DIRECTION
        io2* ddt = reinterpret_cast<io2*>(ddt_BLKD + (picture * K + k) * D + (at.there ? at.d : 0));
        const long long group = (long long)blockIdx.x * GROUPS + threadIdx.x / 32 % GROUPS;
        io* dBC = dBC_GBLKQ + ((group * gridDim.y + at.batch) * L * K + k) * 2 * N + at.q * 2 * NS + at.pair * SUMS % (2 * NS);
        float behind[2 * NS], dA[2 * NS], kept[2 * NS], dD[2] = {0.f, 0.f}, dbias[2] = {0.f, 0.f};
        load_states(at, dlast_BKDN, map * D, behind);
#pragma unroll
        for (int n = 0; n < 2 * NS; ++n) dA[n] = 0.f, behind[n] = settled(at, behind[n]);
        auto tile_of = [&](int i) { return at.reversed ? i : path.tiles - 1 - i; };
        auto fetch_tile = [&](int i) {
            if (i < path.tiles) {
                const int place = path.place(tile_of(i), at.lane);
                fetch<2 * PAIRS * sizeof(io)>(at, shared.x[i % 2], x, int(x_l * sizeof(io)), place, there);
                fetch<2 * PAIRS * sizeof(io)>(at, shared.dt[i % 2], dt, int(dt_l * sizeof(io)), place, there);
                fetch<2 * PAIRS * sizeof(io)>(at, shared.dy[i % 2], dy, D * int(sizeof(io)), place, there);
                fetch<2 * N * sizeof(float)>(at, shared.bc[i % 2], bc, K * 2 * N * sizeof(float), place);
            }
            end_copies();
        };
        fetch_tile(0);
        fetch_tile(1);
        load_states(at, kept_BKIDN, (map * path.tiles + tile_of(0)) * D, kept);
        for (int i = 0; i < path.tiles; ++i) {
            const int tile = tile_of(i), place = path.place(tile, at.lane), offset = place * (D / 2), steps = path.steps(tile);
            const bool middle = path.tiles % 2 && i == path.tiles / 2;
            if (i == path.tiles / 2) __syncthreads();
            if (middle && at.reversed) __syncthreads();
            const bool first = columns == 0 && (i < path.tiles / 2 || (middle && !at.reversed));
            wait_for_copies<1>();
            __syncwarp();
            const io2 *xs = reinterpret_cast<const io2*>(shared.x[i % 2]), *zs = reinterpret_cast<const io2*>(shared.dt[i % 2]);
            io2* dys = reinterpret_cast<io2*>(shared.dy[i % 2]);
#pragma unroll
            for (int o = 0; o < 8; ++o) {
                const int step = at.own<T>(o), cell = row(step) * PAIRS + at.pair;
                float2 d = make_float2(softplus2(low(zs[cell]) * LOG2E + bias[0]), softplus2(high(zs[cell]) * LOG2E + bias[1]));
                if (steps < TILE && step >= steps) d = make_float2(0.f, 0.f), dys[cell] = pack(0.f, 0.f);
                shared.delta[cell] = d;
            }
            float start[2 * NS];
#pragma unroll
            for (int n = 0; n < 2 * NS; ++n) start[n] = kept[n];
            __syncwarp();
            if (i + 1 < path.tiles) load_states(at, kept_BKIDN, (map * path.tiles + tile_of(i + 1)) * D, kept);
            const int end = min(steps, stored);
            auto delta_u = [&](int cell) {
                const float2 d = shared.delta[cell];
                return make_float4(d.x, d.y, d.x * low(xs[cell]), d.y * high(xs[cell]));
            };
            if constexpr (ROUNDS > 1) {
                float state[2 * NS], before[2 * NS], decay[2 * NS];
#pragma unroll
                for (int n = 0; n < 2 * NS; ++n) state[n] = start[n];
#pragma unroll 1
                for (int r = 0; r + 1 < ROUNDS; ++r) {
                    const int begin = row(r * S * T + at.s * T), cell = begin * PAIRS + at.pair;
                    run<T>(at, [&](int j) { return delta_u(cell + row(j) * PAIRS); }, shared.bc[i % 2] + begin * 2 * N + at.q * NS, A,
                           state, before, decay);
#pragma unroll
                    for (int n = 0; n < 2 * NS; ++n) shared.start[r][n * 32 + at.lane] = state[n];
                }
            }
#pragma unroll 1
            for (int r = ROUNDS - 1; r >= 0; --r) {
                const int begin = row(r * S * T + at.s * T), cell = begin * PAIRS + at.pair;
                const float* bc_j = shared.bc[i % 2] + begin * 2 * N + at.q * NS;
                int to[OWN];
                io2 old[OWN];
#pragma unroll
                for (int o = 0; o < OWN; ++o) {
                    to[o] = __shfl_sync(~0u, offset, r * S * T + at.s * T + at.q * OWN + o);
                    old[o] = dx[to[o]];
                }
                float state[2 * NS], h_before[2 * NS], total[2 * NS], decay[T][2 * NS], h[T][2 * NS], d[T][2], u[T][2];
#pragma unroll
                for (int n = 0; n < 2 * NS; ++n) h_before[n] = ROUNDS > 1 && r ? shared.start[r - 1][n * 32 + at.lane] : start[n];
                if constexpr (S > 1) {
#pragma unroll
                    for (int n = 0; n < 2 * NS; ++n) state[n] = h_before[n];
                    run<T>(at, [&](int j) { return delta_u(cell + row(j) * PAIRS); }, bc_j, A, state, h_before, total);
                }
#pragma unroll
                for (int j = 0; j < T; ++j) {
                    float B[NS];
                    read<NS>(bc_j + row(j) * 2 * N, B);
                    const float4 v = delta_u(cell + row(j) * PAIRS);
                    d[j][0] = v.x, d[j][1] = v.y, u[j][0] = v.z, u[j][1] = v.w;
#pragma unroll
                    for (int m = 0; m < 2 * NS; ++m) {
                        decay[j][m] = exp2_(d[j][m / NS] * A[m]);
                        h[j][m] = decay[j][m] * (j ? h[j - 1][m] : h_before[m]) + u[j][m / NS] * B[m % NS];
                    }
                }
                float r_j[2 * NS];  // r of the step
                if constexpr (S > 1) {
                    float back[2 * NS];
#pragma unroll
                    for (int n = 0; n < 2 * NS; ++n) back[n] = 0.f;
#pragma unroll
                    for (int j = T - 1; j >= 0; --j) {
                        float C[NS];
                        read<NS>(bc_j + row(j) * 2 * N + N, C);
                        const io2 dy2 = dys[cell + row(j) * PAIRS];
#pragma unroll
                        for (int m = 0; m < 2 * NS; ++m) back[m] = decay[j][m] * (C[m % NS] * (m < NS ? low(dy2) : high(dy2)) + back[m]);
                    }
                    join(at, total, back, behind, r_j, true);
                } else {
#pragma unroll
                    for (int n = 0; n < 2 * NS; ++n) r_j[n] = behind[n];
                }
                // the o-th of the steps that are the lane's own, with what goes through decay and through B of both channels
                auto finish = [&](int o, const float* v) {
                    const int step = r * S * T + at.s * T + at.q * OWN + o, cell = row(step) * PAIRS + at.pair;
                    const float x0 = low(xs[cell]), x1 = high(xs[cell]), dy0 = low(dys[cell]), dy1 = high(dys[cell]);
                    const float2 d = shared.delta[cell];
                    const float z0 = low(zs[cell]) * LOG2E + bias[0], z1 = high(zs[cell]) * LOG2E + bias[1];
                    const float ddt0 = (LN2 * v[0] + x0 * v[2]) * sigmoid2(z0), ddt1 = (LN2 * v[1] + x1 * v[3]) * sigmoid2(z1);
                    float dx0 = skip[0] * dy0 + LN2 * d.x * v[2], dx1 = skip[1] * dy1 + LN2 * d.y * v[3];
                    if (!first) dx0 += low(old[o]), dx1 += high(old[o]);
                    if (step < end) ddt[(long long)to[o] * K] = pack(ddt0, ddt1), dx[to[o]] = pack(dx0, dx1);
                    if (step < steps) dbias[0] += ddt0, dbias[1] += ddt1;
                    dD[0] += dy0 * x0, dD[1] += dy1 * x1;
                };
                float dBC_j[T * 2 * NS], through[T * 4];
#pragma unroll
                for (int j = T - 1; j >= 0; --j) {
                    float B[NS], C[NS], through_decay[2] = {0.f, 0.f}, through_B[2] = {0.f, 0.f};
                    read<NS>(bc_j + row(j) * 2 * N, B);
                    read<NS>(bc_j + row(j) * 2 * N + N, C);
                    const io2 dy2 = dys[cell + row(j) * PAIRS];
                    const float dy_j[2] = {low(dy2), high(dy2)};
#pragma unroll
                    for (int n = 0; n < NS; ++n) {
                        float dB = 0.f, dC = 0.f;
#pragma unroll
                        for (int c = 0; c < 2; ++c) {
                            const int m = c * NS + n;
                            const float g = C[n] * dy_j[c] + r_j[m];
                            r_j[m] = decay[j][m] * g;
                            const float through_h = r_j[m] * (j ? h[j - 1][m] : h_before[m]);
                            through_decay[c] += through_h * A[m], through_B[c] += g * B[n];
                            dA[m] += through_h * d[j][c];
                            dB += g * u[j][c], dC += h[j][m] * dy_j[c];
                        }
                        dBC_j[j * 2 * NS + n] = dB, dBC_j[j * 2 * NS + NS + n] = dC;
                    }
#pragma unroll
                    for (int c = 0; c < 2; ++c) through[j * 4 + c] = through_decay[c], through[j * 4 + 2 + c] = through_B[c];
                }
                if constexpr (S == 1) {
#pragma unroll
                    for (int n = 0; n < 2 * NS; ++n) behind[n] = r_j[n];
                }
                fold<T * 4, Q, PAIRS>(at, through, shared.folded);
#pragma unroll
                for (int o = 0; o < OWN; ++o) finish(o, through + 4 * o);
                fold<T * 2 * NS, PAIRS, 1>(at, dBC_j, shared.folded);
                {
                    const int step = r * S * T + at.s * T + at.pair * SUMS / (2 * NS);
                    const long long token = __shfl_sync(~0u, place, step);
                    io2* sums = reinterpret_cast<io2*>(dBC + token * (K * 2 * N));
                    if (step < steps) {
#pragma unroll
                        for (int v = 0; v < SUMS; v += 2) sums[v / 2] = pack(LN2 * dBC_j[v], LN2 * dBC_j[v + 1]);
                    }
                }
            }
            __syncwarp();
            fetch_tile(i + 2);
            if (middle && !at.reversed) __syncthreads();
        }
#pragma unroll
        for (int off = SEGMENT; off < 32; off *= 2)
#pragma unroll
            for (int n = 0; n < 2 * NS; ++n) dA[n] += __shfl_xor_sync(~0u, dA[n], off);
        store_states(at, dA_BKDN, map * D, dA, LN2 * LN2);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
            for (int off = PAIRS; off < 32; off *= 2)
                dD[c] += __shfl_xor_sync(~0u, dD[c], off), dbias[c] += __shfl_xor_sync(~0u, dbias[c], off);
            if (at.there && at.lane < PAIRS) dD_BKD[map * D + at.d + c] = dD[c], dbias_BKD[map * D + at.d + c] = dbias[c];
        }
        __syncthreads();
    }
}
