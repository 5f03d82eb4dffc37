// SS2D with one state a channel, where a scan is more memory than arithmetic: forward and recomputing backward, as ss2d.cu has
// them for several states.
//
// A block owns 32 channels of one picture and walks the four directions one after the other, in tiles of 16 steps a warp. A
// run, half a warp, takes 8 neighbouring steps of a tile; a lane has two neighbouring channels of them. What steps do to
// the state is h -> decay h + end: each warp makes one such pair of its 16 steps and publishes it in shared memory, and a run
// that knows the pairs before its own knows its first state. Backwards the same is done from the other end at the same time,
// with r -> decay r + back.
// A warp copies its rows of the next tile to shared memory while it computes one, and what comes of a tile leaves by the same rows, in
// pieces of 16 bytes.
// A block adds each direction to y (and dx) itself, in the same order in every run.
// A step that is not there has delta = 0, so it keeps the state; a channel that is not there has x = dy = 0.

constexpr int STEPS = 8, LANES = 16, MINE = 2 * STEPS;  // of a run: steps, lanes; of a warp: steps
constexpr int WIDE = 2 * LANES;                         // channels
constexpr int PIECE = 16 / sizeof(io), PIECES = WIDE / PIECE;  // elements of a piece; pieces of a row
constexpr int MOVES = MINE * PIECES / 32;               // that a warp takes for a tile's pieces
constexpr int ROWS = MINE + 1;                          // in shared memory, one left out: so both runs meet other banks
DEVICE constexpr int cell(int row) { return (row + row / STEPS) * WIDE; }

struct alignas(16) Forward {
    io x[2][ROWS * WIDE], z[2][ROWS * WIDE], y[ROWS * WIDE];
    alignas(16) io2 bc[2][MINE];
};
struct alignas(16) Backward {
    io x[2][ROWS * WIDE], z[2][ROWS * WIDE], dy[2][ROWS * WIDE], dx[ROWS * WIDE];
    alignas(16) io2 bc[2][MINE];
};
constexpr int PAIRS = 2 * WARPS * LANES;
static_assert(16 * PAIRS + WARPS * sizeof(Forward) == FORWARD_BYTES, "as in fused.py");
static_assert(16 * PAIRS + WARPS * sizeof(Backward) == BACKWARD_BYTES, "as in fused.py");

struct Run {
    int lane, half, thread, warp, batch, channel;
    int piece, row;  // of the pieces that a thread moves: its first element, and its row in the first of MOVES moves
    bool there, piece_there;
    DEVICE Run(int D) {
        thread = threadIdx.x % 32, lane = thread % LANES, half = thread / LANES, warp = threadIdx.x / 32;
        const int first = blockIdx.x * WIDE;
        batch = blockIdx.y, piece = first + thread % PIECES * PIECE, row = thread / PIECES;
        there = first + 2 * lane < D, channel = there ? first + 2 * lane : 0, piece_there = piece < D;
    }
};

// Rows of one picture, by their places.
struct Rows {
    char* base;
    int bytes;
    DEVICE Rows(const io* first, long long elements)
        : base(reinterpret_cast<char*>(const_cast<io*>(first))), bytes(int(elements * sizeof(io))) {}
    DEVICE float4* operator[](int place) const { return reinterpret_cast<float4*>(base + (long long)place * bytes); }
};

struct Path {
    int length, H, W;
    unsigned magic;  // ceil(2^32 / H): position / H is the high word of position * magic
    bool columns, reversed;
    DEVICE Path(int i, int L, int H, int W, long long magic)
        : length(L), H(H), W(W), magic(unsigned(magic)), columns(i >= 2), reversed(i % 2 == 1) {}
    DEVICE int direction() const { return int(columns) + 2 * int(reversed); }
    DEVICE int place(int step) const {  // token of the map, row-major
        const int position = reversed ? length - 1 - step : step;
        if (!columns) return position;
        const int column = __umulhi(unsigned(position), magic);
        return (position - column * H) * W + column;
    }
};

// A warp's steps in one tile: how many there are, and the place of step thread % 16; beyond the end, the last place.
struct Steps {
    int number, own;
    DEVICE Steps(const Run& at, const Path& path, int tile) {
        const int first = (tile * WARPS + at.warp) * MINE;
        number = path.length - first, own = path.place(min(first + at.thread % MINE, path.length - 1));
    }
};

// Calls move(i, row, place) for the rows of which a thread moves a piece.
template <typename Move>
DEVICE void each_piece(const Run& at, const Steps& steps, Move move) {
#pragma unroll
    for (int i = 0; i < MOVES; ++i) {
        const int row = i * (MINE / MOVES) + at.row;
        move(cell(i * (MINE / MOVES)), row, __shfl_sync(~0u, steps.own, row));
    }
}

// Steps that are not there: softplus(-inf) is 0.
DEVICE void keep_still(const Run& at, const Steps& steps, io2* zs) {
    if (steps.number >= MINE) return;
#pragma unroll
    for (int j = 0; j < STEPS; ++j)
        if (at.half * STEPS + j >= steps.number) zs[j * LANES] = pack(-1.f / 0.f, -1.f / 0.f);
}

// What both kernels begin a direction with.
#define DIRECTION                                                                                                      \
    const Path path(i, L, H, W, magic_);                                                                               \
    const int k = path.direction(), channel = k * D + at.channel, to = at.row * WIDE + at.thread % PIECES * PIECE;        \
    const Rows x(x_ + at.batch * x_b + at.piece, x_l), dt(dt_ + at.batch * dt_b + k * dt_k + at.piece, dt_l);            \
    const io2* bc = reinterpret_cast<const io2*>(BC_BLKN) + picture * K + k;                                           \
    const long long map = ((long long)at.batch * K + k) * D + at.channel;                                              \
    const float A[2] = {A_KDN[channel], A_KDN[channel + 1]}, skip[2] = {D_KD[channel], D_KD[channel + 1]};              \
    const float bias[2] = {bias_KD[channel] * LOG2E, bias_KD[channel + 1] * LOG2E};

DEVICE float part(io2 v, int c) { return c ? high(v) : low(v); }

// The derivative of softplus where it is d (in units of ln 2): 1 - exp(-d).
DEVICE float sigmoid_of(float d) {
    const float n = d * LN2;
    const float near = n * (1.f - n * (0.5f - n * (0.16666667f - (IO == 32 ? n * 0.041666667f : 0.f))));
    return less_(d, 0.0625f, near, 1.f - exp2_(-d));
}

DEVICE void store2(float* to, float a, float b) { to[0] = a, to[1] = b; }

extern "C" KERNEL(FORWARD_BLOCKS) ss2d_forward(WALK(io), io* y_BLD, float* last_BKDN, float* kept_BKIDN) {
    SHARED(memory);
    const Run at(D);
    Forward& shared = reinterpret_cast<Forward*>(memory + PAIRS)[at.warp];
    const int tiles = (L + WARPS * MINE - 1) / (WARPS * MINE), mine = cell(at.half * STEPS) / 2 + at.lane;
    const long long picture = (long long)at.batch * L;
    const Rows y(y_BLD + picture * D + at.piece, D);
    int turn = 0;
    for (int i = 0; i < K; ++i) {
        DIRECTION
        float state[2] = {0.f, 0.f};
        auto fetch = [&](const Steps& steps, int stage) {
            each_piece(at, steps, [&](int i_cell, int row, int place) {
                copy_async<16>(shared.z[stage] + to + i_cell, dt[place], at.piece_there);
                copy_async<16>(shared.x[stage] + to + i_cell, x[place], at.piece_there);
            });
            if (at.thread < MINE) copy_async<sizeof(io2)>(shared.bc[stage] + at.thread, bc + (long long)steps.own * K, true);
        };
        Steps steps(at, path, 0);
        fetch(steps, 0);
        end_copies();
        for (int tile = 0; tile < tiles; ++tile, turn ^= 1) {
            if (i) {
                each_piece(at, steps, [&](int i_cell, int row, int place) {
                    copy_async<16>(shared.y + to + i_cell, y[place], at.piece_there);
                });
            }
            end_copies();
            const Steps next(at, path, min(tile + 1, tiles - 1));
            if (tile + 1 < tiles) fetch(next, (tile + 1) % 2);
            end_copies();
            wait_for_copies<2>();
            __syncwarp();
            io2* zs = reinterpret_cast<io2*>(shared.z[tile % 2]) + mine;
            const io2 *xs = reinterpret_cast<const io2*>(shared.x[tile % 2]) + mine, *bcs = shared.bc[tile % 2] + at.half * STEPS;
            keep_still(at, steps, zs);
            // y = ys + ahead h, with the state h before the run
            float ys[STEPS][2], ahead[STEPS][2], end[2] = {0.f, 0.f}, total[2] = {1.f, 1.f};
#pragma unroll
            for (int j = 0; j < STEPS; ++j) {
                const io2 z = zs[j * LANES], x_j = xs[j * LANES], bc_j = bcs[j];
                const float B = low(bc_j), C = LN2 * high(bc_j);
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    const float d = softplus2(part(z, c) * LOG2E + bias[c]), decay = exp2_(d * A[c]);
                    end[c] = decay * end[c] + d * part(x_j, c) * B, total[c] *= decay;
                    ys[j][c] = C * end[c] + skip[c] * part(x_j, c), ahead[j][c] = C * total[c];
                }
            }
            float first_end[2], first_total[2], h[2];  // of the warp's first run
#pragma unroll
            for (int c = 0; c < 2; ++c)
                first_end[c] = __shfl_sync(~0u, end[c], at.lane), first_total[c] = __shfl_sync(~0u, total[c], at.lane);
            float4* pairs = memory + turn * WARPS * LANES + at.lane;
            if (at.half)
                pairs[at.warp * LANES] = make_float4(total[0] * first_total[0], total[1] * first_total[1],
                                                     total[0] * first_end[0] + end[0], total[1] * first_end[1] + end[1]);
            __syncthreads();
#pragma unroll
            for (int w = 0; w < WARPS; ++w) {
                if (w == at.warp) h[0] = state[0], h[1] = state[1];
                const float4 pair = pairs[w * LANES];
                state[0] = pair.x * state[0] + pair.z, state[1] = pair.y * state[1] + pair.w;
            }
            if (kept_BKIDN && at.there && at.half == 0 && steps.number > 0) {
                const int tile_of_warps = (L + MINE - 1) / MINE;
                store2(kept_BKIDN + (((long long)at.batch * K + k) * tile_of_warps + tile * WARPS + at.warp) * D + at.channel, h[0], h[1]);
            }
            if (at.half) h[0] = first_total[0] * h[0] + first_end[0], h[1] = first_total[1] * h[1] + first_end[1];
            wait_for_copies<1>();
            __syncwarp();
            io2* sum = reinterpret_cast<io2*>(shared.y) + mine;
#pragma unroll
            for (int j = 0; j < STEPS; ++j) {
                float y0 = ys[j][0] + ahead[j][0] * h[0], y1 = ys[j][1] + ahead[j][1] * h[1];
                if (i) y0 += low(sum[j * LANES]), y1 += high(sum[j * LANES]);
                sum[j * LANES] = pack(y0, y1);
            }
            __syncwarp();
            each_piece(at, steps, [&](int i_cell, int row, int place) {
                if (at.piece_there && row < steps.number) *y[place] = *reinterpret_cast<const float4*>(shared.y + to + i_cell);
            });
            __syncwarp();
            steps = next;
        }
        if (at.there && threadIdx.x < LANES) store2(last_BKDN + map, LN2 * state[0], LN2 * state[1]);
        __syncthreads();  // what one direction wrote, the next one's other warps read
    }
}

// Adjoint g_t = C_t dy_t + r_t, r_{t-1} = decay_t g_t, from the last step to the first; what follows from it:
//   dC_t = h_t dy_t     dB_t = g_t delta_t x_t     dx_t = delta_t (B_t . g_t) + D dy_t
//   dA = sum_t r_{t-1} h_{t-1} delta_t             ddelta_t = A . (r_{t-1} h_{t-1}) + x_t (B_t . g_t)
extern "C" KERNEL(BACKWARD_BLOCKS) ss2d_backward(WALK(io), const io* dy_BLD, const float* dlast_BKDN, const float* kept_BKIDN,
                                                 io* dx_BLD, io* ddt_BLKD, float* dA_BKDN, float* dD_BKD, float* dbias_BKD,
                                                 io* dBC_GBLKQ) {
    SHARED(memory);
    const Run at(D);
    Backward& shared = reinterpret_cast<Backward*>(memory + PAIRS)[at.warp];
    const int tiles = (L + WARPS * MINE - 1) / (WARPS * MINE), mine = cell(at.half * STEPS) / 2 + at.lane;
    const long long picture = (long long)at.batch * L;
    const Rows dy(dy_BLD + picture * D + at.piece, D), dx(dx_BLD + picture * D + at.piece, D);
    int turn = 0;
    for (int i = 0; i < K; ++i) {
        DIRECTION
        const Rows ddt(ddt_BLKD + (picture * K + k) * D + at.piece, K * D);
        io2* dBC = reinterpret_cast<io2*>(dBC_GBLKQ) + ((long long)blockIdx.x * gridDim.y * L + picture) * K + k;
        float behind[2] = {0.f, 0.f}, sums[6] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f};  // of dA, dD, dbias
        if (dlast_BKDN && at.there) behind[0] = dlast_BKDN[map], behind[1] = dlast_BKDN[map + 1];
        auto fetch = [&](const Steps& steps, int stage) {
            each_piece(at, steps, [&](int i_cell, int row, int place) {
                copy_async<16>(shared.z[stage] + to + i_cell, dt[place], at.piece_there);
                copy_async<16>(shared.x[stage] + to + i_cell, x[place], at.piece_there);
                copy_async<16>(shared.dy[stage] + to + i_cell, dy[place], at.piece_there && row < steps.number);
            });
            if (at.thread < MINE) copy_async<sizeof(io2)>(shared.bc[stage] + at.thread, bc + (long long)steps.own * K, true);
        };
        Steps steps(at, path, tiles - 1);
        fetch(steps, (tiles - 1) % 2);
        end_copies();
        for (int tile = tiles - 1; tile >= 0; --tile, turn ^= 1) {
            if (i) {
                each_piece(at, steps, [&](int i_cell, int row, int place) {
                    copy_async<16>(shared.dx + to + i_cell, dx[place], at.piece_there);
                });
            }
            end_copies();
            const Steps next(at, path, max(tile - 1, 0));
            if (tile) fetch(next, (tile - 1) % 2);
            end_copies();
            float h[2] = {0.f, 0.f};
            if (at.half == 0 && steps.number > 0) {
                const float* kept = kept_BKIDN + (((long long)at.batch * K + k) * ((L + MINE - 1) / MINE) + tile * WARPS + at.warp) * D;
                h[0] = kept[at.channel], h[1] = kept[at.channel + 1];
            }
            wait_for_copies<2>();
            __syncwarp();
            io2* zs = reinterpret_cast<io2*>(shared.z[tile % 2]) + mine;
            const io2 *xs = reinterpret_cast<const io2*>(shared.x[tile % 2]) + mine, *bcs = shared.bc[tile % 2] + at.half * STEPS;
            const io2* dys = reinterpret_cast<const io2*>(shared.dy[tile % 2]) + mine;
            keep_still(at, steps, zs);
            float decay[STEPS][2], d[STEPS][2], H[STEPS][2], end[2] = {0.f, 0.f}, back[2] = {0.f, 0.f}, total[2] = {1.f, 1.f};
#pragma unroll
            for (int j = 0; j < STEPS; ++j) {
                const io2 z = zs[j * LANES], x_j = xs[j * LANES];
                const float B = low(bcs[j]);
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    d[j][c] = softplus2(part(z, c) * LOG2E + bias[c]);
                    decay[j][c] = exp2_(d[j][c] * A[c]), H[j][c] = d[j][c] * part(x_j, c) * B;
                    end[c] = decay[j][c] * end[c] + H[j][c], total[c] *= decay[j][c];
                }
            }
#pragma unroll
            for (int j = STEPS - 1; j >= 0; --j) {
                const io2 dy_j = dys[j * LANES];
                const float C = high(bcs[j]);
#pragma unroll
                for (int c = 0; c < 2; ++c) back[c] = decay[j][c] * (C * part(dy_j, c) + back[c]);
            }
            float other_back[2], other_total[2], r[2];  // of the warp's other run
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const float first = end[c] + total[c] * h[c], left = __shfl_sync(~0u, first, at.lane);
                if (at.half) h[c] = left;
                other_back[c] = __shfl_xor_sync(~0u, back[c], LANES), other_total[c] = __shfl_xor_sync(~0u, total[c], LANES);
            }
            float4* pairs = memory + turn * WARPS * LANES + at.lane;
            if (at.half)
                pairs[at.warp * LANES] =
                    make_float4(total[0] * other_total[0], total[1] * other_total[1], other_total[0] * back[0] + other_back[0],
                                other_total[1] * back[1] + other_back[1]);
            __syncthreads();
#pragma unroll
            for (int w = WARPS - 1; w >= 0; --w) {
                if (w == at.warp) r[0] = behind[0], r[1] = behind[1];
                const float4 pair = pairs[w * LANES];
                behind[0] = pair.x * behind[0] + pair.z, behind[1] = pair.y * behind[1] + pair.w;
            }
            if (!at.half) r[0] = other_total[0] * r[0] + other_back[0], r[1] = other_total[1] * r[1] + other_back[1];
#pragma unroll
            for (int j = 0; j < STEPS; ++j)
#pragma unroll
                for (int c = 0; c < 2; ++c) H[j][c] += decay[j][c] * (j ? H[j - 1][c] : h[c]);
            wait_for_copies<1>();
            __syncwarp();
            io2* sum = reinterpret_cast<io2*>(shared.dx) + mine;
            float dBC_j[2 * STEPS];
#pragma unroll
            for (int j = STEPS - 1; j >= 0; --j) {
                const float B = low(bcs[j]), C = high(bcs[j]);
                const io2 x2 = xs[j * LANES], dy2 = dys[j * LANES];
                float ddt_j[2], dx_j[2];
                dBC_j[2 * j] = dBC_j[2 * j + 1] = 0.f;
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    const float x_j = part(x2, c), dy_j = part(dy2, c), g = C * dy_j + r[c], through_B = g * B;
                    r[c] = decay[j][c] * g;
                    const float through_h = r[c] * (j ? H[j - 1][c] : h[c]);
                    dBC_j[2 * j] += d[j][c] * x_j * g, dBC_j[2 * j + 1] += H[j][c] * dy_j;
                    ddt_j[c] = (LN2 * A[c] * through_h + x_j * through_B) * sigmoid_of(d[j][c]);
                    dx_j[c] = skip[c] * dy_j + LN2 * d[j][c] * through_B;
                    sums[c] += through_h * d[j][c], sums[2 + c] += dy_j * x_j, sums[4 + c] += ddt_j[c];
                }
                if (i) dx_j[0] += low(sum[j * LANES]), dx_j[1] += high(sum[j * LANES]);
                zs[j * LANES] = pack(ddt_j[0], ddt_j[1]), sum[j * LANES] = pack(dx_j[0], dx_j[1]);
            }
            __syncwarp();
            each_piece(at, steps, [&](int i_cell, int row, int place) {
                if (at.piece_there && row < steps.number) {
                    *ddt[place] = *reinterpret_cast<const float4*>(shared.z[tile % 2] + to + i_cell);
                    *dx[place] = *reinterpret_cast<const float4*>(shared.dx + to + i_cell);
                }
            });
            halve<2 * STEPS, LANES, 1>(at.lane, dBC_j);  // a lane is left with dB or dC of step lane / 2
            const float dC = __shfl_xor_sync(~0u, dBC_j[0], 1);
            const int step = at.half * STEPS + at.lane / 2;
            const long long place = __shfl_sync(~0u, steps.own, step);
            if (at.lane % 2 == 0 && step < steps.number) dBC[place * K] = pack(LN2 * dBC_j[0], LN2 * dC);
            __syncwarp();
            steps = next;
        }
        __syncthreads();
        float* all = reinterpret_cast<float*>(memory);
#pragma unroll
        for (int v = 0; v < 6; ++v) {
            sums[v] += __shfl_xor_sync(~0u, sums[v], LANES);
            if (!at.half) all[(at.warp * 6 + v) * LANES + at.lane] = sums[v];
        }
        __syncthreads();
        if (threadIdx.x < LANES && at.there) {
            for (int w = 1; w < WARPS; ++w)
                for (int v = 0; v < 6; ++v) sums[v] += all[(w * 6 + v) * LANES + at.lane];
            store2(dA_BKDN + map, LN2 * LN2 * sums[0], LN2 * LN2 * sums[1]);
            store2(dD_BKD + map, sums[2], sums[3]), store2(dbias_BKD + map, sums[4], sums[5]);
        }
        __syncthreads();
    }
}
