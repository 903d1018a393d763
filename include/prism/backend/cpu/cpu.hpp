// Cpu: the backend of ordinary processors. Our own kernels, in the instructions that there are.
//
//     prism::Cpu cpu{{.threads = 8}};
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/backend/cpu/isa.hpp"
#include "prism/backend/cpu/kernels.hpp"
#include "prism/backend/cpu/pool.hpp"

#include <algorithm>
#include <array>
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
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace prism {

struct CpuOptions {
    std::size_t threads = 0;      // 0: as many as physical cores
    Isa         isa = best_isa();  // another that the processor runs may be asked for
    Compute     compute = Compute::exact;
};

/// Owns its threads. Work is cut over outputs, so results are the same bits at any number of threads. One backend may
/// serve several callers; their operations then take turns.
class Cpu {
public:
    using space = host;
    static constexpr bool has_numbers = true;
    template <class T> using Matrix = View<T, host, dyn, dyn>;
    template <class T> using Vector = View<T, host, dyn>;

    template <int = 0>  // what is not called is not compiled: no kernels for who only includes this
    explicit Cpu(CpuOptions options = {})
        : isa_(runs(options.isa) ? options.isa : best_isa()), compute_(options.compute), kernels_(&cpu::kernels_for(isa_)),
          pool_(options.threads ? options.threads : physical_cores(), [] { static_cast<void>(cpu::scratch()); }) {}

    std::size_t         threads() const { return pool_.size(); }
    Isa                 isa() const { return isa_; }
    Compute             compute() const { return compute_; }
    /// Floating-point operations done so far, counted as Dry counts them. Other threads may ask while work goes on: with
    /// the cost of a dry run, that tells how far it is.
    std::uint64_t flops_done() const { return flops_.load(std::memory_order_relaxed); }
    void          count_flops(std::uint64_t n) { flops_.fetch_add(n, std::memory_order_relaxed); }
    const cpu::Kernels& kernels() const { return *kernels_; }

    /// The form in which products of so many rows with weights of this format take them.
    cpu::Form form_of(Dtype weights, std::size_t rows) const { return product_of(weights, rows).form; }

    /// body(begin, end) for [0, n) in pieces of `piece`, on all threads.
    template <class Body>
    void parallel_for(std::size_t n, std::size_t piece, Body&& body) {
        pool_.parallel_for(n, piece, std::forward<Body>(body));
    }

    /// Aligned to 64 bytes; large pieces lie in huge pages where the system has them, because products look at thousands
    /// of ordinary pages at a time.
    Buffer<host> allocate(std::size_t bytes) {
        if (bytes == 0) return {};
        constexpr std::size_t huge_page = std::size_t{2} << 20;
        if (bytes < 2 * huge_page)
            return {::operator new(bytes, std::align_val_t{64}), bytes, [](void* p, std::size_t) noexcept { ::operator delete(p, std::align_val_t{64}); }};
        void* const memory = ::operator new(bytes, std::align_val_t{huge_page});
#if defined(__linux__)
        ::madvise(memory, bytes / huge_page * huge_page, MADV_HUGEPAGE);
#endif
        return {memory, bytes, [](void* p, std::size_t) noexcept { ::operator delete(p, std::align_val_t{huge_page}); }};
    }

    /// In place when the tensor already has this type, dense rows and the alignment of its elements; else converted, or
    /// gathered in its own type, into memory of its own. Throws LoadError.
    template <int = 0>
    Placed place(const TensorInfo& t, Dtype wanted) {
        if (t.dtype == wanted && !t.made && t.stride.empty() && std::bit_cast<std::uintptr_t>(t.data) % alignment_of(wanted) == 0)
            return {t.data, t.owner};
        const TensorInfo  dense = contiguous(t);
        const std::size_t rows = t.shape.size() < 2 ? 1 : t.shape[0], cols = rows ? t.elements() / rows : 0, bytes = stored_bytes(wanted, cols);
        auto              buffer = std::make_shared<Buffer<host>>(allocate(rows * bytes));
        auto* const       to = static_cast<std::byte*>(buffer->data());
        if (t.dtype == wanted) {
            if (dense.data) std::memcpy(to, dense.data, rows * bytes);
        } else {
            parallel_for(rows, std::max<std::size_t>(1, 65536 / std::max<std::size_t>(1, cols)), [&](std::size_t first, std::size_t last) {
                for (std::size_t i = first; i < last; ++i) cpu::KernelTables<>::fill_row(dense, wanted, cols, i, to + i * bytes);
            });
        }
        release(t);
        return {to, std::move(buffer)};
    }

    /// A matrix of `rows` rows in panels: in place when it is so already, else read once, on all threads. Pages of mapped
    /// files are given back as soon as they have been read.
    template <int = 0>
    Placed place_matrix(const TensorInfo& t, Dtype wanted, std::size_t rows) {
        if (t.panels) {
            if (t.dtype != wanted || std::bit_cast<std::uintptr_t>(t.data) % 64 != 0)
                throw LoadError{t.file, t.name, "panels of " + std::string(to_string(wanted)) + " at a multiple of 64 bytes", std::string(to_string(t.dtype))};
            return {t.data, t.owner, true};
        }
        const std::size_t cols = rows ? t.elements() / rows : 0, n_panels = (rows + panel_width - 1) / panel_width, bytes = panel_bytes(wanted, cols);
        const TensorInfo  dense = contiguous(t);
        auto              buffer = std::make_shared<Buffer<host>>(allocate(n_panels * bytes));
        std::byte* const  panels = static_cast<std::byte*>(buffer->data());
        parallel_for(n_panels, 1, [&](std::size_t first, std::size_t last) {
            for (std::size_t p = first; p < last; ++p) cpu::KernelTables<>::fill_panel(dense, wanted, rows, cols, p, panels + p * bytes);
        });
        release(t);
        return {panels, std::move(buffer), true};
    }

    // q8, q4 and q4m begin with an f16; they are never converted here
    static std::size_t alignment_of(Dtype t) { return item_bytes(t) ? item_bytes(t) : alignof(fp16_t); }

    void upload(std::span<const float> from, Vector<float> to) { std::copy(from.begin(), from.end(), to.data()); }
    void download(Vector<const float> from, std::span<float> to) { std::copy_n(from.data(), to.size(), to.data()); }
    void wait() {}

    template <Format F>
    void gemm(Matrix<const float> x, const Packed<F, host>& w, const Epilogue<host>& after, Matrix<float> y) {
        const Job job{w, {}, after, y};
        multiply(x, {&job, 1});
    }
    void gemm_each(Matrix<const float> x, std::span<const ProductPart<host>> parts) {
        std::array<Job, 8> jobs;
        for (std::size_t i = 0; i < parts.size();) {
            std::size_t n = 0;
            for (; i < parts.size() && n < jobs.size() && (n == 0 || form_of(parts[i].w.dtype, x.rows()) == form_of(jobs[0].w.dtype, x.rows())); ++i)
                jobs[n++] = {parts[i].w, {}, {.bias = parts[i].bias}, parts[i].y};
            multiply(x, {jobs.data(), n});
        }
    }
    void gemm_gated(Matrix<const float> x, const AnyPacked<host>& gate, const AnyPacked<host>& up, Matrix<float> y) {
        const Job job{gate, up, {}, y};
        multiply(x, {&job, 1});
    }

    template <Format F>
    void gather(const Packed<F, host>& w, std::span<const std::int32_t> ids, Matrix<float> y) {
        const std::size_t n = blocks_per_row<F>(w.cols);
        for (std::size_t i = 0; i < ids.size(); ++i) {
            const auto row = static_cast<std::size_t>(ids[i]);
            float*     to = y.row(i).data();
            if (F::values_per_block == 1 && !w.panels) {
                F::decode(std::span(w.data + row * w.stride, n), std::span(to, n));
                continue;
            }
            const std::size_t most = cpu::scratch_floats / 2 / F::values_per_block;  // blocks at a time
            auto* const       blocks = reinterpret_cast<typename F::block*>(cpu::scratch());
            float* const      values = cpu::scratch() + cpu::scratch_floats / 2;
            if (n > most) throw ShapeError{"gather", "w", "rows of at most " + std::to_string(most * F::values_per_block), std::to_string(w.cols)};
            copy_row(w, row, blocks);
            F::decode(std::span<const typename F::block>(blocks, n), std::span(values, n * F::values_per_block));
            std::copy_n(values, w.cols, to);
        }
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

    template <class T>
    void attention(Matrix<const float> q, Matrix<const T> k, Matrix<const T> v, const AttentionShape& shape, Matrix<float> y) {
        using Tile = cpu::AttendTile<T>;
        const std::size_t n_q = q.rows() / shape.n_sequences, n_kv = k.rows() / shape.n_sequences;
        if (n_q == 0) return;
        const bool        few = n_q <= 4;
        // Large blocks of rows share what is made of the keys; more threads get smaller ones. No bit of a row depends on it.
        std::size_t n_blocks = (n_q + Tile::max_rows - 1) / Tile::max_rows;
        while (!few && shape.n_sequences * shape.n_heads * n_blocks < 4 * threads() && n_blocks * 64 < n_q) ++n_blocks;
        const std::size_t block = ((n_q + n_blocks - 1) / n_blocks + 15) / 16 * 16;
        const std::size_t n_parts = few ? (n_kv + Tile::part_keys - 1) / Tile::part_keys : 1;
        const std::size_t shared = shape.n_heads / shape.n_kv_heads;  // query heads per key head
        const std::size_t stride = shape.kv_head_stride ? shape.kv_head_stride : shape.head_dim;
        const std::size_t n_tasks = shape.n_sequences * shape.n_heads * n_blocks * n_parts;
        const auto        flops = shape.flops(q.rows(), k.rows());
        const auto        kernels = [&] {
            const bool rounded = compute_ == Compute::fast;
            if constexpr (std::is_same_v<T, float>) return rounded ? kernels_->rounded_attend_f32 : kernels_->attend_f32;
            else return rounded ? kernels_->rounded_attend_bf16 : kernels_->attend_bf16;
        }();
        float* parts = nullptr;
        if (few) {  // taken for a whole cache and the most rows from the first call on, so that nothing is while the cache fills
            const std::size_t capacity = std::max(n_kv, shape.kv_head_stride / shape.head_dim), most_parts = (capacity + Tile::part_keys - 1) / Tile::part_keys;
            std::byte* const  memory = cpu::activation_memory(most_parts > 1 ? shape.n_sequences * shape.n_heads * most_parts * 4 * Tile::part_floats * sizeof(float) : 0);
            if (n_parts > 1) parts = reinterpret_cast<float*>(memory);
        }
        parallel_for(n_tasks, 1, [&](std::size_t task, std::size_t) {
            // Long pictures spend minutes in one call, so it is counted piece by piece, in shares that add up exactly.
            count_flops(flops / n_tasks + (task < flops % n_tasks));
            const std::size_t part = task % n_parts, first = task / n_parts % n_blocks * block, head = task / n_parts / n_blocks % shape.n_heads;
            const std::size_t sequence = task / n_parts / n_blocks / shape.n_heads;
            if (first >= n_q) return;
            const std::size_t row = sequence * n_q + first, at = head * shape.head_dim, at_kv = head / shared * stride;
            (few ? kernels.row : kernels.block)(
                {q.row(row).data() + at, q.ld(), std::min(block, n_q - first), shape.q_pos + first, k.row(sequence * n_kv).data() + at_kv,
                 v.row(sequence * n_kv).data() + at_kv, k.ld(), v.ld(), n_kv, shape.head_dim, shape.causal, shape.window, shape.scale, y.row(row).data() + at, y.ld(),
                 part * Tile::part_keys, n_parts > 1 ? (part + 1) * Tile::part_keys : n_kv, parts ? parts + task * n_q * Tile::part_floats : nullptr});
        });
        if (!parts) return;
        for (std::size_t task = 0; task < n_tasks; task += n_parts)
            for (std::size_t i = 0; i < n_q; ++i) {
                const std::size_t head = task / n_parts % shape.n_heads, sequence = task / n_parts / shape.n_heads;
                kernels_->merge(parts + (task * n_q + i) * Tile::part_floats, n_parts, n_q * Tile::part_floats, shape.head_dim,
                                y.row(sequence * n_q + i).data() + head * shape.head_dim);
            }
    }

    /// The heads of x [n, n_heads head_dim] to rows of their own: head h's go to `to` [n, head_dim], h `stride` elements on.
    template <class T>
    void split_heads(Matrix<const float> x, std::size_t n_heads, std::size_t stride, Matrix<T> to) {
        rows(x, [&](std::size_t i) {
            for (std::size_t h = 0; h < n_heads; ++h) {
                const float* from = x.row(i).data() + h * to.cols();
                T* const     at = to.row(i).data() + h * stride;
                if constexpr (std::is_same_v<T, float>) std::copy_n(from, to.cols(), at);
                else kernels_->round(from, at, to.cols());
            }
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
    static void release(const TensorInfo& t) {
        if (t.mapped && !t.made && t.stride.empty()) release_pages(t.data, std::max<std::uint64_t>(t.bytes(), stored_bytes(t.dtype, t.elements())));
    }

    /// One product of a call.
    struct Job {
        AnyPacked<host> w{}, up{};  // up: y = silu(x w^T) (x up^T)
        Epilogue<host>  after{};
        Matrix<float>   y{};
    };

    const cpu::Product& product_of(Dtype weights, std::size_t rows) const {
        const std::size_t i = cpu::index_of(weights);
        if (compute_ == Compute::exact) return kernels_->products[i];
        return rows > cpu::few_rows && kernels_->rounded_blocks[i].run ? kernels_->rounded_blocks[i] : kernels_->rounded_products[i];
    }

    static cpu::WeightRows weight_rows(const AnyPacked<host>& w) { return {w.data, w.stride, w.panels, w.first}; }

    /// Products with the same rows, all of which take them in one form. The rows are converted once; then the tiles of
    /// all results are one loop.
    void multiply(Matrix<const float> x, std::span<const Job> jobs) {
        using Tile = cpu::ProductTile;
        if (x.rows() == 0 || jobs.empty()) return;
        const cpu::Form   form = form_of(jobs[0].w.dtype, x.rows());
        const std::size_t k = x.cols(), m = x.rows(), bytes = cpu::Activations::bytes(form, m, k);
        const auto        rows_of_x = cpu::Activations::at(form, x.data(), x.ld(), m, k, bytes ? cpu::activation_memory(bytes) : nullptr);
        if (form != cpu::Form::f32) {
            const auto convert = [&](std::size_t begin, std::size_t end) {
                for (std::size_t i = begin; i < end; ++i) kernels_->convert(form, k, rows_of_x, i);
            };
            if (m * k < 32768) convert(0, m);  // less than it takes to wake a thread
            else parallel_for(m, std::max<std::size_t>(1, 16384 / k), convert);
        }
        // More threads get narrower tiles; a tile's size changes no bit of its sums.
        const std::size_t n_down = (m + Tile::max_rows - 1) / Tile::max_rows, height = ((m + n_down - 1) / n_down + 15) / 16 * 16;
        std::size_t       width = m <= 8 ? Tile::max_cols / 2 : Tile::max_cols;
        const auto        n_tiles = [&](const Job& job) { return (job.w.rows + width - 1) / width * n_down; };
        const auto        in_all = [&] {
            std::size_t n = 0;
            for (const Job& job : jobs) n += n_tiles(job);
            return n;
        };
        while (width > kernels_->panel_cols && in_all() < 4 * threads()) width /= 2;
        for (const Job& job : jobs) {
            const std::uint64_t twice = job.up.rows ? 2 : 1;
            count_flops(2 * twice * std::uint64_t{m} * job.w.rows * k);
        }
        parallel_for(in_all(), 1, [&](std::size_t tile, std::size_t) {
            std::size_t which = 0;
            for (; tile >= n_tiles(jobs[which]); ++which) tile -= n_tiles(jobs[which]);
            const Job&        job = jobs[which];
            const std::size_t across = tile / n_down * width, down = tile % n_down * height;
            if (down >= m) return;
            product_of(job.w.dtype, m).run({.x = rows_of_x.from(down), .m = std::min(height, m - down), .k = k, .w = weight_rows(job.w), .up = weight_rows(job.up),
                                   .begin = across, .end = std::min(across + width, job.w.rows), .n = job.w.rows, .bias = job.after.bias.data(), .act = job.after.act,
                                   .add = job.after.add, .gamma = job.after.gamma.data(), .y = job.y.data() + down * job.y.ld(), .ldy = job.y.ld()});
        });
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
    Compute             compute_;
    const cpu::Kernels* kernels_;
    ThreadPool          pool_;

    std::atomic<std::uint64_t> flops_{0};
};

static_assert(Backend<Cpu>);

}  // namespace prism
