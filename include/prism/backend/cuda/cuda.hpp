// BasicCuda: the backend of NVIDIA's GPUs, over a driver. Sources that nvcc compiles include prism/cuda.cuh and say Cuda;
// EmulatedCuda (emulated.hpp) is the same backend on the processor, for tests and debuggers.
//
//     prism::Cuda cuda{{.compute = prism::Compute::fast}};
//     auto vlm = prism::from_pretrained(cuda, folder);
#pragma once

#include "prism/backend/cuda/attention.hpp"
#include "prism/backend/cuda/conversion.hpp"
#include "prism/backend/cuda/driver.hpp"
#include "prism/backend/cuda/kernels/norm.hpp"
#include "prism/backend/cuda/kernels/rows.hpp"
#include "prism/backend/cuda/kernels/sample.hpp"
#include "prism/backend/cuda/products.hpp"
#include "prism/backend/recording.hpp"
#include "prism/core/workspace.hpp"
#include "prism/quant/panels.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace prism {

template <class DriverOptions>
struct CudaOptions {
    Compute       compute = Compute::exact;
    DriverOptions driver{};
};

/// Enqueues its operations on one stream and returns; wait() and download() wait. Not for several threads at once: each
/// takes a backend of its own. Activations are f32, whatever the weights are.
template <cuda::Driver D>
class BasicCuda {
public:
    using space = device;
    using Options = CudaOptions<typename D::Options>;
    static constexpr bool has_numbers = true;
    template <class T> using Matrix = View<T, device, dyn, dyn>;
    template <class T> using Vector = View<T, device, dyn>;

    explicit BasicCuda(Options options = {}) : compute_(options.compute), driver_(options.driver) {}

    D&      driver() { return driver_; }
    Compute compute() const { return compute_; }
    /// Floating-point operations enqueued so far, counted as Dry counts them.
    std::uint64_t flops_done() const { return flops_.load(std::memory_order_relaxed); }

    /// Which of how many devices that hold a model together (ParallelBackend).
    std::size_t rank() const { return driver_.rank(); }
    std::size_t n_ranks() const { return driver_.n_ranks(); }

    Buffer<device> allocate(std::size_t bytes) { return driver_.allocate(bytes); }
    void           upload(std::span<const float> from, Vector<float> to) { driver_.to_device(to.data(), from.data(), from.size_bytes()); }
    void           download(Vector<const float> from, std::span<float> to) { driver_.to_host(to.data(), from.data(), to.size_bytes()); }
    void           wait() { driver_.wait(); }

    /// f32: all values, one after another. Other types as place_matrix has them, which lookups read, too. Throws LoadError.
    Placed place(const TensorInfo& t, Dtype wanted) {
        const std::size_t rows = t.shape.size() < 2 ? 1 : t.shape[0], cols = rows ? t.elements() / rows : 0;
        if (wanted != Dtype::f32) return place_matrix(t, wanted, rows);
        if (item_bytes(t.dtype) == 0) throw LoadError{t.file, t.name, "values one by one", std::string(to_string(t.dtype))};
        const TensorInfo dense = readable(t);
        auto             buffer = std::make_shared<Buffer<device>>(allocate(rows * cols * sizeof(float)));
        auto* const      to = buffer->template as<float>();
        if (dense.dtype == Dtype::f32) driver_.to_device(to, dense.data, rows * cols * sizeof(float));
        else in_pieces(dense, rows, cols, [&](const void* from, std::size_t first, std::size_t n) {
            cuda::convert_values(driver_, dense.dtype, from, static_cast<std::int64_t>(n * cols), to + first * cols);
        });
        return {to, std::move(buffer)};
    }

    /// A matrix of `rows` rows as products read it (weights.hpp): its rows go up as they lie in their file, piece by piece, and
    /// are converted on the device.
    Placed place_matrix(const TensorInfo& t, Dtype wanted, std::size_t rows) {
        const std::size_t cols = rows ? t.elements() / rows : 0;
        const std::size_t row_bytes = cuda::device_bytes(wanted, 1, cols);
        auto              buffer = std::make_shared<Buffer<device>>(allocate(rows * row_bytes));
        std::byte* const  to = buffer->template as<std::byte>();
        if (t.panels) {
            pieces((rows + panel_width - 1) / panel_width, panel_bytes(t.dtype, cols), t.data, [&](const void* from, std::size_t first, std::size_t n) {
                const std::size_t row = first * panel_width;
                cuda::convert_panels(driver_, t.dtype, static_cast<const std::byte*>(from), 0, static_cast<std::int64_t>(std::min(n * panel_width, rows - row)),
                                     static_cast<std::int64_t>(cols), wanted, to + row * row_bytes);
            });
        } else {
            const TensorInfo dense = readable(t);
            in_pieces(dense, rows, cols, [&](const void* from, std::size_t first, std::size_t n) {
                cuda::convert_rows(driver_, dense.dtype, from, static_cast<std::int64_t>(n), static_cast<std::int64_t>(cols), wanted, to + first * row_bytes);
            });
        }
        return {to, std::move(buffer), true};
    }

    template <Format F>
    void gemm(Matrix<const float> x, const Packed<F, device>& w, const Epilogue<device>& after, Matrix<float> y) {
        const cuda::ProductJob job{w, {}, after, rows(y)};
        multiply(x, std::span(&job, 1));
    }
    void gemm_each(Matrix<const float> x, std::span<const ProductPart<device>> parts) {
        in_eights(parts, [&](std::span<const cuda::ProductJob> jobs) { multiply(x, jobs); });
    }
    void gemm_gated(Matrix<const float> x, const AnyPacked<device>& gate, const AnyPacked<device>& up, Matrix<float> y) {
        const cuda::ProductJob job{gate, up, {}, rows(y)};
        multiply(x, std::span(&job, 1));
    }
    /// The same products of rms_norm(x); false where the norm needs a step of its own, and nothing is done.
    bool rms_gemm_each(Matrix<const float> x, Vector<const float> weight, float eps, std::span<const ProductPart<device>> parts) {
        bool takes = true;
        in_eights(parts, [&](std::span<const cuda::ProductJob> jobs) { takes = takes && takes_norm(x, jobs); });
        if (takes) in_eights(parts, [&](std::span<const cuda::ProductJob> jobs) { multiply(x, jobs, {weight.data(), eps}); });
        return takes;
    }
    bool rms_gemm_gated(Matrix<const float> x, Vector<const float> weight, float eps, const AnyPacked<device>& gate, const AnyPacked<device>& up, Matrix<float> y) {
        const cuda::ProductJob job{gate, up, {}, rows(y)};
        if (!takes_norm(x, std::span(&job, 1))) return false;
        multiply(x, std::span(&job, 1), {weight.data(), eps});
        return true;
    }

    template <Format F>
    void gather(const Packed<F, device>& w, std::span<const std::int32_t> ids, Matrix<float> y) {
        if (ids.empty()) return;
        const std::int32_t* at = ids_;
        if (at) {
            ids_ += ids.size();
        } else {
            auto* const to = reinterpret_cast<std::int32_t*>(scratch(ids.size_bytes()));
            driver_.to_device(to, ids.data(), ids.size_bytes());
            at = to;
        }
        cuda::gather(driver_, AnyPacked<device>(w), at, rows(y));
    }

    void layer_norm(Matrix<const float> x, Vector<const float> weight, Vector<const float> bias, float eps, Matrix<float> y) {
        norm({rows(x), weight.data(), bias.data(), eps, false, rows(y)});
    }
    void rms_norm(Matrix<const float> x, Vector<const float> weight, float eps, Matrix<float> y) {
        norm({rows(x), weight.data(), nullptr, eps, true, rows(y)});
    }
    void activate(Activation act, Matrix<float> x) { map(cuda::Activate{act}, x); }
    void silu_mul(Matrix<const float> gate, Matrix<const float> up, Matrix<float> y) { map(cuda::SiluMul{rows(gate), rows(up)}, y); }
    void add_scaled(Matrix<const float> h, Vector<const float> gamma, Matrix<float> x) {
        map(cuda::AddScaled{rows(h), gamma.empty() ? nullptr : gamma.data()}, x);
    }
    void add_table(Matrix<const float> table, Matrix<float> x) { map(cuda::AddScaled{rows(table), nullptr}, x); }
    void copy(Matrix<const float> x, Matrix<float> y) { map(cuda::Copy{rows(x)}, y); }

    void rope_table(std::size_t first, float theta, Vector<float>, Matrix<float> cos, Matrix<float> sin) {
        for_each<1>(cuda::RopeTableOf{static_cast<std::int64_t>(first), shift_, theta, rows(cos), rows(sin)}, cos.rows(), cos.cols());
    }
    void rope(Matrix<const float> cos, Matrix<const float> sin, std::size_t n_heads, Matrix<float> x) {
        for_each<1>(cuda::Rotate{rows(cos), rows(sin), static_cast<std::int32_t>(x.cols() / n_heads), rows(x)}, x.rows(), n_heads * cos.cols());
    }
    template <class T>
    void split_heads(Matrix<const float> x, std::size_t, std::size_t stride, Matrix<T> to) {
        for_each<4>(cuda::SplitHeads<T>{rows(x), static_cast<std::int64_t>(stride), shift_, rows(to)}, x.rows(), x.cols());
    }
    /// Both at once, for q, k and v (ops::rope_and_append); k stays as it is.
    template <class T>
    void rope_and_append(Matrix<const float> cos, Matrix<const float> sin, Matrix<float> q, Matrix<const float> k, Matrix<const float> v, std::size_t stride,
                         Matrix<T> keys, Matrix<T> values) {
        const auto of = [&]<int width>() {
            return cuda::RopeAndAppend<T, width>{rows(cos), rows(sin), rows(q), rows(k), rows(v), static_cast<std::int64_t>(stride), shift_, rows(keys), rows(values)};
        };
        const auto each = of.template operator()<1>();
        if (each.in_fours()) for_each<4>(of.template operator()<4>(), q.rows(), static_cast<std::size_t>(each.columns()));
        else for_each<1>(each, q.rows(), static_cast<std::size_t>(each.columns()));
    }
    template <class T>
    void attention(Matrix<const float> q, Matrix<const T> k, Matrix<const T> v, const AttentionShape& shape, Matrix<float> y) {
        attend(q, k, v, shape, y, cuda::NewRows<T>{});
    }
    /// rope_and_append, then attention; q and k stay as they are. False where that takes two steps, and nothing is done.
    template <class T>
    bool append_and_attend(Matrix<const float> cos, Matrix<const float> sin, Matrix<const float> q, Matrix<const float> k, Matrix<const float> v,
                           const AttentionShape& shape, Matrix<T> keys, Matrix<T> values, Matrix<float> y) {
        if (q.rows() == 0) return true;
        if (!cuda::attend_appends(shape, q.rows(), keys.rows(), shift_ != nullptr)) return false;
        attend<T>(q, keys, values, shape, y, {rows(cos), rows(sin), rows(k), rows(v), keys.data(), values.data()});
        return true;
    }
    void patchify(View<const float, device, dyn, dyn, dyn, dyn> pixels, std::size_t patch, Matrix<float> patches) {
        for_each<1>(cuda::Patchify{pixels.data(), static_cast<std::int64_t>(pixels.stride(0)), static_cast<std::int64_t>(pixels.stride(1)),
                                   static_cast<std::int64_t>(pixels.stride(2)), static_cast<std::int32_t>(pixels.extent(2) / patch),
                                   static_cast<std::int32_t>(pixels.extent(3) / patch), static_cast<std::int32_t>(patch), rows(patches)},
                    patches.rows(), patches.cols());
    }

    /// first(ws) and second(another workspace, as large), so that both may be under way at once.
    template <class First, class Second>
    void side_by_side(Workspace<BasicCuda>& ws, First&& first, Second&& second) {
        if (beside_.empty() || beside_.back()->capacity_bytes() < ws.capacity_bytes()) beside_.push_back(std::make_unique<Workspace<BasicCuda>>(*this, ws.capacity_bytes()));
        driver_.fork([&] { first(ws); }, [&] { second(*beside_.back()); });
    }

    // What only devices offer: work that is recorded once and then done again at other positions, with other tokens, without
    // the host (RecordingBackend). Work has to have been done once before it is recorded, so that memory is there.
    using Recording = typename D::Recording;

    /// What `work` enqueues, for replay(). Nothing is done now.
    template <class Work>
    Recording record(Work&& work) {
        return driver_.record(std::forward<Work>(work));
    }
    void replay(Recording& r) { driver_.replay(r); }

    /// Embeddings from here on take their ids from the device, one after another from `ids` on; null: from their caller.
    void ids_from(const std::int32_t* ids) { ids_ = ids; }
    /// Positions from here on are counted from `*shift` on, an integer on the device that is read when the work is done.
    void shift_from(const std::int32_t* shift) { shift_ = shift; }

    /// Integers and numbers of the device.
    void upload(std::span<const std::int32_t> from, std::int32_t* to) { driver_.to_device(to, from.data(), from.size_bytes()); }
    void upload(std::span<const double> from, double* to) { driver_.to_device(to, from.data(), from.size_bytes()); }
    void download(const std::int32_t* from, std::span<std::int32_t> to) { driver_.to_host(to.data(), from, to.size_bytes()); }

    /// *token = first_id + the index of the largest score, the lowest of equal ones; -1 where one is not finite.
    void take_likeliest(Vector<const float> scores, std::int32_t first_id, std::int32_t* token) {
        driver_.launch({1, 1, 1}, cuda::TakeLikeliest::max_threads, cuda::TakeLikeliest::shared_bytes,
                       cuda::TakeLikeliest{scores.data(), static_cast<std::int32_t>(scores.size()), first_id, token});
    }
    /// *token = first_id + an index drawn as Sampler draws, by a number in [0, 1) that lies on the device.
    void take_drawn(Vector<const float> scores, std::int32_t first_id, float temperature, std::int64_t top_k, float top_p, const double* uniform, std::int32_t* token) {
        const auto n = static_cast<std::int32_t>(scores.size());
        driver_.launch({1, 1, 1}, cuda::TakeDrawn::max_threads, cuda::TakeDrawn::shared_bytes,
                       cuda::TakeDrawn{scores.data(), n, first_id, static_cast<std::int32_t>(std::min<std::int64_t>(top_k, n)), temperature, top_p, uniform, token});
    }

private:
    static constexpr std::size_t piece_bytes = std::size_t{32} << 20;  // of a file that is on the device before it is converted

    template <class T>
    static cuda::Rows<T> rows(Matrix<T> x) {
        return {x.data(), static_cast<std::int32_t>(x.rows()), static_cast<std::int32_t>(x.cols()), static_cast<std::int64_t>(x.ld())};
    }

    template <int width, class Work>
    void for_each(const Work& work, std::size_t n_rows, std::size_t n_cols) {
        using Kernel = cuda::ForEach<width, Work>;
        if (n_rows == 0 || n_cols == 0) return;
        const auto r = static_cast<std::int64_t>(n_rows), c = static_cast<std::int64_t>(n_cols);
        driver_.launch({static_cast<int>(Kernel::n_blocks(r, c)), 1, 1}, Kernel::max_threads, 0, Kernel{work, static_cast<std::int32_t>(r), static_cast<std::int32_t>(c)});
    }
    template <class Value>
    void map(const Value& value, Matrix<float> y) {
        for_each<4>(cuda::Map<Value>{value, rows(y)}, y.rows(), y.cols());
    }
    template <class T>
    void attend(Matrix<const float> q, Matrix<const T> k, Matrix<const T> v, const AttentionShape& shape, Matrix<float> y, const cuda::NewRows<T>& fresh) {
        if (q.rows() == 0) return;
        flops_.fetch_add(shape.flops(q.rows(), k.rows()), std::memory_order_relaxed);
        cuda::attend(driver_, attention_memory(cuda::attend_scratch_bytes(shape, q.rows(), k.rows(), shift_ != nullptr)), rows(q), rows(k), rows(v), shape,
                     compute_ == Compute::fast, shift_, rows(y), fresh);
    }
    void norm(const cuda::Norm& kernel) {
        if (kernel.x.rows == 0) return;
        driver_.launch({kernel.x.rows, 1, 1}, cuda::Norm::threads_for(kernel.x.cols), cuda::Norm::shared_bytes, kernel);
    }
    /// work(jobs) for as many parts at a time as a launch takes.
    template <class Work>
    static void in_eights(std::span<const ProductPart<device>> parts, Work&& work) {
        std::array<cuda::ProductJob, 8> jobs;
        for (std::size_t i = 0; i < parts.size();) {
            std::size_t n = 0;
            for (; i < parts.size() && n < jobs.size(); ++i) jobs[n++] = {parts[i].w, {}, {.bias = parts[i].bias}, rows(parts[i].y)};
            work(std::span<const cuda::ProductJob>(jobs).first(n));
        }
    }
    static bool takes_norm(Matrix<const float> x, std::span<const cuda::ProductJob> jobs) {
        return std::ranges::none_of(jobs, partial) && cuda::Products<D>::takes_norm(rows(x), jobs);
    }
    void multiply(Matrix<const float> x, std::span<const cuda::ProductJob> jobs, const cuda::RowNorm& norm = {}) {
        if (x.rows() == 0) return;
        for (const auto& job : jobs)
            flops_.fetch_add(2 * std::uint64_t{job.up.rows ? 2U : 1U} * x.rows() * job.w.rows * x.cols(), std::memory_order_relaxed);
        if (std::ranges::none_of(jobs, partial)) return product(rows(x), jobs, norm);
        for (const auto& job : jobs) {
            if (partial(job)) add_up(rows(x), job);
            else product(rows(x), std::span(&job, 1));
        }
    }
    void product(cuda::Rows<const float> x, std::span<const cuda::ProductJob> jobs, const cuda::RowNorm& norm = {}) {
        products_.run(driver_, [this](std::size_t bytes) { return scratch(bytes); }, x, jobs, compute_ == Compute::fast, norm);
    }
    static bool partial(const cuda::ProductJob& job) { return job.w.partial || job.up.partial; }
    /// A product of columns that ranks share: first its sums over all ranks, then what follows.
    void add_up(cuda::Rows<const float> x, const cuda::ProductJob& job) {
        const std::size_t                             size = static_cast<std::size_t>(x.rows) * job.w.rows;
        auto* const                                   memory = reinterpret_cast<float*>(grown(sums_, 2 * size * sizeof(float)));
        std::array<cuda::Rows<const float>, 2>        z{};
        const std::array<const AnyPacked<device>*, 2> weights{&job.w, &job.up};
        for (std::size_t i = 0; i < 2; ++i) {
            if (weights[i]->rows == 0) continue;
            const cuda::Rows<float> to{memory + i * size, x.rows, job.y.cols, job.y.cols};
            const cuda::ProductJob  part{*weights[i], {}, {}, to};
            product(x, std::span(&part, 1));
            if (weights[i]->partial) driver_.all_reduce(to.data, size);
            z[i] = {to.data, to.rows, to.cols, to.ld};
        }
        cuda::Products<D>::finish(driver_, z[0], z[1], nullptr, job);
    }

    /// t with dense rows, in a type that the device converts.
    static TensorInfo readable(const TensorInfo& t) {
        if (stored_bytes(t.dtype, 1) > 0) return contiguous(t);
        return with_values(t, std::make_shared<std::vector<float>>(to_floats(t)));
    }
    /// work(where they are on the device, first, how many) for n items of so many bytes, a piece at a time.
    template <class Work>
    void pieces(std::size_t n, std::size_t item_bytes, const std::byte* from, Work&& work) {
        if (n == 0 || item_bytes == 0) return;
        const std::size_t most = std::max<std::size_t>(1, std::min(n, piece_bytes / item_bytes));
        void* const       to = scratch(most * item_bytes);
        for (std::size_t first = 0; first < n; first += most) {
            const std::size_t count = std::min(most, n - first);
            driver_.to_device(to, from + first * item_bytes, count * item_bytes);
            work(to, first, count);
        }
    }
    template <class Work>
    void in_pieces(const TensorInfo& t, std::size_t n_rows, std::size_t n_cols, Work&& work) {
        pieces(n_rows, stored_bytes(t.dtype, n_cols), t.data, work);
    }

    /// Memory for one operation of a branch. It grows in the first runs; what recordings hold stays where it is.
    std::byte* scratch(std::size_t bytes) { return grown(scratch_, bytes); }
    using OfBranches = std::array<std::vector<Buffer<device>>, 2>;
    std::byte* grown(OfBranches& of, std::size_t bytes) {
        auto& kept = of[static_cast<std::size_t>(driver_.branch())];
        if (kept.empty() || kept.back().bytes() < bytes) kept.push_back(driver_.allocate(std::max<std::size_t>(bytes, std::size_t{1} << 20)));
        return kept.back().template as<std::byte>();
    }

    /// Memory for attention alone, whose first bytes are counters that stay at zero between calls.
    std::byte* attention_memory(std::size_t bytes) {
        if (bytes == 0) return nullptr;
        auto& kept = attention_[static_cast<std::size_t>(driver_.branch())];
        if (kept.empty() || kept.back().bytes() < bytes) kept.push_back(driver_.allocate_cleared(bytes, cuda::attend_counter_bytes));
        return kept.back().template as<std::byte>();
    }

    Compute                    compute_;
    D                          driver_;
    cuda::Products<D>          products_;
    OfBranches                 scratch_, attention_, sums_;  // of each branch of a fork
    std::vector<std::unique_ptr<Workspace<BasicCuda>>> beside_;  // the last is used; recordings may hold the others
    const std::int32_t*        ids_ = nullptr;
    const std::int32_t*        shift_ = nullptr;
    std::atomic<std::uint64_t> flops_{0};
};

}  // namespace prism
