// Cpu: the backend of ordinary processors. Our own kernels where we have instructions for them, Eigen elsewhere.
//
//     prism::Cpu cpu{{.threads = 8}};
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/backend/cpu/isa.hpp"
#include "prism/backend/cpu/kernels.hpp"
#include "prism/backend/cpu/pool.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <type_traits>

namespace prism {

struct CpuOptions {
    std::size_t threads = 0;      // 0: as many as physical cores
    Isa         isa = best_isa();  // a smaller set than the processor has may be asked for
};

/// Owns its threads. Work is cut over outputs, so results are the same bits at any number of threads. One backend may
/// serve several callers; their operations then take turns.
class Cpu {
public:
    using space = host;
    static constexpr bool has_numbers = true;
    template <class T> using Matrix = View<T, host, dyn, dyn>;
    template <class T> using Vector = View<T, host, dyn>;

    explicit Cpu(CpuOptions options = {})
        : isa_(std::min(options.isa, best_isa())), kernels_(&cpu::kernels_for(isa_)),
          pool_(options.threads ? options.threads : physical_cores()) {}

    std::size_t         threads() const { return pool_.size(); }
    Isa                 isa() const { return isa_; }
    /// Floating-point operations done so far, counted as Dry counts them. Other threads may ask while work goes on: with
    /// the cost of a dry run, that tells how far it is.
    std::uint64_t flops_done() const { return flops_.load(std::memory_order_relaxed); }
    const cpu::Kernels& kernels() const { return *kernels_; }

    /// body(begin, end) for [0, n) in pieces of `piece`, on all threads.
    template <class Body>
    void parallel_for(std::size_t n, std::size_t piece, Body&& body) {
        pool_.parallel_for(n, piece, std::forward<Body>(body));
    }

    Buffer<host> allocate(std::size_t bytes) {
        if (bytes == 0) return {};
        return {::operator new(bytes, std::align_val_t{64}), bytes,
                [](void* p, std::size_t) noexcept { ::operator delete(p, std::align_val_t{64}); }};
    }

    /// In place when the tensor already has this type, dense rows and the alignment of its elements; else converted
    /// (to f32, or gathered in its own type) into memory of its own.
    Placed place(const TensorInfo& t, Dtype wanted) {
        if (t.dtype == wanted && t.stride.empty() && std::bit_cast<std::uintptr_t>(t.data) % alignment_of(wanted) == 0)
            return {t.data, t.owner};
        const std::size_t n = t.elements();
        auto              buffer = std::make_shared<Buffer<host>>(allocate(n * item_bytes(wanted)));
        if (t.dtype == wanted) {
            const TensorInfo dense = contiguous(t);
            if (n) std::memcpy(buffer->data(), dense.data, dense.bytes());
        } else if (wanted == Dtype::f32) {
            const std::vector<float> values = to_floats(t);
            if (n) std::memcpy(buffer->data(), values.data(), n * sizeof(float));
        } else {
            throw LoadError{t.file, t.name, std::string(to_string(wanted)), std::string(to_string(t.dtype))};
        }
        const void* data = buffer->data();
        return {data, std::move(buffer)};
    }

    // q8, q4 and q4m begin with an f16; they are never converted here
    static std::size_t alignment_of(Dtype t) { return item_bytes(t) ? item_bytes(t) : alignof(fp16_t); }

    void upload(std::span<const float> from, Vector<float> to) { std::copy(from.begin(), from.end(), to.data()); }
    void download(Vector<const float> from, std::span<float> to) { std::copy_n(from.data(), to.size(), to.data()); }
    void wait() {}

    template <Format F>
    void gemm(Matrix<const float> x, const Packed<F, host>& w, const Epilogue<host>& after, Matrix<float> y) {
        using W = typename F::block;
        using Tile = cpu::GemmTile<W>;
        const Tile whole{x.data(), x.ld(), x.rows(), w.cols, w.data, w.stride, w.rows, after.bias.data(), after.act, y.data(), y.ld(), nullptr};
        if (w.rows == 0 || x.rows() == 0) return;
        flops_.fetch_add(2 * std::uint64_t{x.rows()} * w.rows * w.cols, std::memory_order_relaxed);
        if (x.rows() <= 4) {
            const auto kernel = std::get<cpu::GemmFn<W>>(kernels_->gemv);
            if constexpr (F::values_per_block > 1) {  // the rows of x become int8 once, for all rows of w
                const auto quantised = cpu::QuantisedRows::at(cpu::scratch(), x.rows(), x.cols());
                for (std::size_t i = 0; i < x.rows(); ++i) kernels_->quantise(x.row(i).data(), x.cols(), quantised, i);
                Tile tile = whole;
                tile.quantised = &quantised;
                parallel_for(w.rows, gemv_rows, [&](std::size_t begin, std::size_t end) { kernel(part(tile, 0, x.rows(), begin, end)); });
            } else {
                parallel_for(w.rows, gemv_rows, [&](std::size_t begin, std::size_t end) { kernel(part(whole, 0, x.rows(), begin, end)); });
            }
            return;
        }
        // More threads get narrower tiles. In our kernels a tile's width changes no bit of its sums; in Eigen's it does.
        const std::size_t n_down = (x.rows() + Tile::max_rows - 1) / Tile::max_rows;
        std::size_t       width = Tile::max_cols;
        while (isa_ != Isa::portable && width > kernels_->panel && (w.rows + width - 1) / width * n_down < 4 * threads()) width /= 2;
        const std::size_t height = (x.rows() + n_down - 1) / n_down;
        const std::size_t n_across = (w.rows + width - 1) / width;
        const auto        kernel = std::get<cpu::GemmFn<W>>(kernels_->gemm);
        parallel_for(n_across * n_down, 1, [&](std::size_t tile, std::size_t) {
            const std::size_t across = tile / n_down * width, down = tile % n_down * height;
            kernel(part(whole, down, std::min(down + height, x.rows()), across, std::min(across + width, w.rows)));
        });
    }

    template <Format F>
    void gather(const Packed<F, host>& w, std::span<const std::int32_t> ids, Matrix<float> y) {
        const auto kernel = std::get<cpu::WidenFn<typename F::block>>(kernels_->widen);
        for (std::size_t i = 0; i < ids.size(); ++i)
            kernel(w.data + static_cast<std::size_t>(ids[i]) * w.stride, y.row(i).data(), w.cols);  // blocks or values
    }

    void layer_norm(Matrix<const float> x, Vector<const float> weight, Vector<const float> bias, float eps, Matrix<float> y) {
        rows(x, [&](std::size_t i) { kernels_->layer_norm(x.row(i).data(), weight.data(), bias.data(), eps, y.row(i).data(), x.cols()); });
    }
    void rms_norm(Matrix<const float> x, Vector<const float> weight, float eps, Matrix<float> y) {
        rows(x, [&](std::size_t i) { kernels_->rms_norm(x.row(i).data(), weight.data(), eps, y.row(i).data(), x.cols()); });
    }
    void activate(Activation act, Matrix<float> x) {
        rows(x, [&](std::size_t i) { kernels_->activate(act, x.row(i).data(), x.cols()); });
    }
    void silu_mul(Matrix<const float> gate, Matrix<const float> up, Matrix<float> y) {
        rows(gate, [&](std::size_t i) { kernels_->silu_mul(gate.row(i).data(), up.row(i).data(), y.row(i).data(), gate.cols()); });
    }
    void add_scaled(Matrix<const float> h, Vector<const float> gamma, Matrix<float> x) {
        rows(h, [&](std::size_t i) { kernels_->add_scaled(h.row(i).data(), gamma.data(), x.row(i).data(), h.cols()); });
    }
    void add_table(Matrix<const float> table, Matrix<float> x) {
        rows(x, [&](std::size_t i) { kernels_->add_scaled(table.row(i % table.rows()).data(), nullptr, x.row(i).data(), x.cols()); });
    }
    void copy(Matrix<const float> x, Matrix<float> y) {
        rows(x, [&](std::size_t i) { std::copy_n(x.row(i).data(), x.cols(), y.row(i).data()); });
    }

    /// cos, sin [n, n_angles] of position (first + i) times the frequencies, every step rounded to f32 as PyTorch does.
    void rope_table(std::size_t first, float theta, Vector<float> frequencies, Matrix<float> cos, Matrix<float> sin) {
        const std::size_t n_angles = frequencies.extent(0);
        for (std::size_t j = 0; j < n_angles; ++j) {
            const float exponent = static_cast<float>(2 * j) / static_cast<float>(2 * n_angles);
            frequencies(j) = 1.0f / static_cast<float>(std::pow(static_cast<double>(theta), static_cast<double>(exponent)));
        }
        rows(cos, [&](std::size_t i) {
            for (std::size_t j = 0; j < n_angles; ++j) {
                const float angle = static_cast<float>(first + i) * frequencies(j);
                cos(i, j) = std::cos(angle), sin(i, j) = std::sin(angle);
            }
        });
    }
    void rope(Matrix<const float> cos, Matrix<const float> sin, std::size_t n_heads, Matrix<float> x) {
        rows(x, [&](std::size_t i) {
            kernels_->rope(x.row(i).data(), n_heads, x.cols() / n_heads, cos.row(i).data(), sin.row(i).data(), cos.cols());
        });
    }

    void attention(Matrix<const float> q, Matrix<const float> k, Matrix<const float> v, const AttentionShape& shape, Matrix<float> y) {
        const std::size_t n_q = q.rows() / shape.n_sequences, n_kv = k.rows() / shape.n_sequences;
        if (n_q == 0) return;
        const std::size_t n_blocks = (n_q + cpu::AttendTile::max_rows - 1) / cpu::AttendTile::max_rows;
        const std::size_t block = (n_q + n_blocks - 1) / n_blocks;
        const std::size_t shared = shape.n_heads / shape.n_kv_heads;  // query heads per key head
        const auto        kernel = n_q <= 4 ? kernels_->attend_row : kernels_->attend;
        const std::size_t n_tasks = shape.n_sequences * shape.n_heads * n_blocks;
        const auto        flops = shape.flops(q.rows(), k.rows());
        parallel_for(n_tasks, 1, [&](std::size_t task, std::size_t) {
            // Long pictures spend minutes in one call, so it is counted piece by piece, in shares that add up exactly.
            flops_.fetch_add(flops / n_tasks + (task < flops % n_tasks), std::memory_order_relaxed);
            const std::size_t first = task % n_blocks * block, head = task / n_blocks % shape.n_heads;
            const std::size_t sequence = task / n_blocks / shape.n_heads;
            if (first >= n_q) return;
            const std::size_t row = sequence * n_q + first, at = head * shape.head_dim, at_kv = head / shared * shape.head_dim;
            kernel({q.row(row).data() + at, q.ld(), std::min(block, n_q - first), shape.q_pos + first,
                    k.row(sequence * n_kv).data() + at_kv, v.row(sequence * n_kv).data() + at_kv, k.ld(), v.ld(), n_kv, shape.head_dim,
                    shape.causal, shape.window, shape.scale, y.row(row).data() + at, y.ld()});
        });
    }

    /// patches [n G G, 3 P P] of pixels [n, 3, S, S], channel-major, then row, then column; G = S / P, rest unread.
    void patchify(View<const float, host, dyn, dyn, dyn, dyn> pixels, std::size_t patch, Matrix<float> patches) {
        const std::size_t grid_y = pixels.extent(2) / patch, grid_x = pixels.extent(3) / patch, channels = pixels.extent(1);
        rows(patches, [&](std::size_t i) {
            const std::size_t image = i / (grid_y * grid_x), gy = i / grid_x % grid_y, gx = i % grid_x;
            float*            out = patches.row(i).data();
            for (std::size_t c = 0; c < channels; ++c)
                for (std::size_t y = 0; y < patch; ++y, out += patch)
                    std::copy_n(&pixels(image, c, gy * patch + y, gx * patch), patch, out);
        });
    }

private:
    static constexpr std::size_t gemv_rows = 32;  // of the weight, per piece

    template <class W>
    static cpu::GemmTile<W> part(cpu::GemmTile<W> t, std::size_t top, std::size_t bottom, std::size_t left, std::size_t right) {
        t.x += top * t.ldx, t.y += top * t.ldy + left, t.m = bottom - top;
        t.w += left * t.ldw, t.n = right - left;
        if (t.bias) t.bias += left;
        return t;
    }

    /// Rows in pieces of about 16 Ki values.
    template <class Body>
    void rows(Matrix<const float> x, Body&& body) {
        const std::size_t piece = std::max<std::size_t>(1, 16384 / std::max<std::size_t>(1, x.cols()));
        parallel_for(x.rows(), piece, [&](std::size_t begin, std::size_t end) {
            for (std::size_t i = begin; i < end; ++i) body(i);
        });
    }

    Isa                 isa_;
    const cpu::Kernels* kernels_;
    ThreadPool          pool_;

    std::atomic<std::uint64_t> flops_{0};
};

static_assert(Backend<Cpu>);

}  // namespace prism
