// Products: y = x w^T and what follows it, for weights in every format on a device. Chooses the kernel by rows and format.
//
//     cuda::Products<Driver> products;
//     products.run(driver, [&](std::size_t bytes) { return scratch(bytes); }, x, jobs, compute == Compute::fast);
//
//     rows of x    weights           way
//     1 ... 8      any               kernels/gemv.hpp, in f32: exact in both modes; with an RMS norm in front, if asked
//     more         q8, q4, q4m       kernels/tile_product.hpp on tensor cores; up to 64 rows with columns in parts (ColumnParts)
//     more         bf16, f16         the library on converted rows (twice where exact), else tiles on tensor cores
//     more         f32               the library, else tiles by fma
// A matrix in rows of a file (a table of embeddings that serves as head) goes a slow way of its own.
#pragma once

#include "prism/backend/cuda/conversion.hpp"
#include "prism/backend/cuda/driver.hpp"
#include "prism/backend/cuda/kernels/gemv.hpp"
#include "prism/backend/cuda/kernels/rows.hpp"
#include "prism/backend/cuda/kernels/tile_product.hpp"
#include "prism/backend/types.hpp"
#include "prism/core/error.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace prism::cuda {

/// One of several products with the same rows: y = what `after` makes of x w^T. With `up` (up.rows != 0) of
/// silu(x w^T) (x up^T), which takes no bias.
struct ProductJob {
    AnyPacked<device> w{}, up{};
    Epilogue<device>  after{};
    Rows<float>       y{};
};

template <class D>
class Products {
public:
    /// Products with more rows than this are made of tiles.
    static constexpr std::int32_t few_rows = 8;

    /// Whether products may go to driver.multiply. One that takes a product with `add` has to take each of its size.
    bool use_library = true;

    /// Whether run() takes a norm in front of all these: few rows, and no kernels but those that read rows of WeightRow.
    static bool takes_norm(Rows<const float> x, std::span<const ProductJob> jobs) {
        return x.rows <= few_rows && std::ranges::all_of(jobs, [](const ProductJob& job) { return way_of(job) == Way::rows; });
    }

    /// All jobs, each with rows x [m, k], or where takes_norm() says so with what `norm` makes of them, to the bit. y must not
    /// overlap x. `scratch(bytes)` is asked at most once and returns device memory aligned to 256, which the kernels use until the
    /// next call's.
    template <class Scratch>
    void run(D& driver, Scratch&& scratch, Rows<const float> x, std::span<const ProductJob> jobs, bool fast, const RowNorm& norm = {}) {
        if (x.rows == 0) return;
        const Plan plan = plan_for(x, jobs, fast);
        std::byte* memory = plan.bytes ? scratch(plan.bytes) : nullptr;

        for (const ProductJob& job : jobs)
            if (way_of(job) == Way::file) file_rows(driver, x, job.w, job.up, after_of(job), job.y);
            else if (way_of(job) == Way::apart) apart(driver, memory, plan, x, job, fast);
        const auto each = [&]<Format... F>(format_list<F...>) { (of_format<F>(driver, memory, plan, x, jobs, fast, norm), ...); };
        each(all_formats{});
    }

    /// y = what job.after makes of sums z, each row times its scale where there are any, or with `up` of silu(z) up.
    static void finish(D& driver, Rows<const float> z, Rows<const float> up, const float* scales, const ProductJob& job) {
        using K = ForEach<4, Finish>;
        driver.launch({static_cast<int>(K::n_blocks(z.rows, z.cols)), 1, 1}, K::max_threads, 0, K{{z, up, scales, after_of(job), job.y}, z.rows, z.cols});
    }

private:
    enum class Way : std::uint8_t {
        rows,   // kernels that read rows of WeightRow
        file,   // FileRowsProduct
        apart,  // gate and up differ in format or layout: two products, then Finish
    };
    static constexpr int n_forms = 4;  // of x: bf16, f16, bf16 for bytes, bf16 for halves

    struct Plan {
        std::array<std::size_t, n_forms> form_at{};
        std::size_t                      scales_at = 0, sums_at = 0, results_at = 0, partial_at = 0, bytes = 0;
        std::int64_t                     padded = 0, ld_sums = 0;
        bool                             sums = false;  // somebody needs those of groups
    };

    static Way way_of(const ProductJob& job) {
        if (job.up.rows != 0 && (job.up.dtype != job.w.dtype || !job.up.panels != !job.w.panels)) return Way::apart;
        return job.w.panels ? Way::rows : Way::file;
    }
    static After after_of(const ProductJob& job) { return {job.after.bias.data(), job.after.gamma.data(), job.after.act, job.after.add}; }
    static constexpr int form_of(Dtype dtype) {
        switch (dtype) {
            case Dtype::bf16: return 0;
            case Dtype::f16: return 1;
            case Dtype::q8: return 2;
            default: return 3;
        }
    }

    Plan plan_for(Rows<const float> x, std::span<const ProductJob> jobs, bool fast) const {
        Plan                      plan;
        std::array<bool, n_forms> wanted{};
        std::size_t               results = 0, partial = 0;
        const auto                m = static_cast<std::size_t>(x.rows);
        for (const ProductJob& job : jobs) {
            const bool tiles = way_of(job) == Way::rows && x.rows > few_rows, gated = job.up.rows != 0;
            for (const AnyPacked<device>* w : {&job.w, &job.up}) {
                if (x.rows <= few_rows || w->rows == 0 || !w->panels || w->dtype == Dtype::f32) continue;
                wanted[static_cast<std::size_t>(form_of(w->dtype))] = true;
                if (w->dtype == Dtype::q4m) plan.sums = true;
                if (x.rows <= ColumnParts::most_rows) partial += ColumnParts::floats(static_cast<std::int64_t>(w->rows), x.cols);  // gates and ups together leave no more
            }
            if (way_of(job) == Way::apart || (tiles && item_bytes(job.w.dtype) != 0 && (gated || job.after.add)))
                results = larger(results, m * job.w.rows * sizeof(float) * (gated ? 2 : 1));
        }
        plan.padded = ceil_div<std::int64_t>(x.cols, 32) * 32;
        plan.ld_sums = ceil_div<std::int64_t>(x.rows, 4) * 4;
        const auto take = [&](std::size_t bytes) {
            const std::size_t at = plan.bytes;
            plan.bytes += ceil_div<std::size_t>(bytes, 256) * 256;
            return at;
        };
        for (std::size_t i = 0; i < n_forms; ++i)
            if (wanted[i]) plan.form_at[i] = take(m * static_cast<std::size_t>(plan.padded) * 2 * (fast ? 1 : 2));
        if (wanted[1]) plan.scales_at = take(m * sizeof(float));
        if (plan.sums) plan.sums_at = take(static_cast<std::size_t>(plan.padded / 32 * plan.ld_sums) * sizeof(float));
        if (results) plan.results_at = take(results);
        if (partial) plan.partial_at = take(partial * sizeof(float));
        return plan;
    }

    /// A gate and its up that no kernel takes together.
    void apart(D& driver, std::byte* memory, const Plan& plan, Rows<const float> x, const ProductJob& job, bool fast) {
        float* const               results = reinterpret_cast<float*>(memory + plan.results_at);
        std::array<Rows<float>, 2> z;
        for (std::size_t i = 0; i < 2; ++i) {
            const AnyPacked<device>& w = i ? job.up : job.w;
            z[i] = {results + i * static_cast<std::size_t>(x.rows) * w.rows, x.rows, job.y.cols, job.y.cols};
            with_format(w.dtype, all_formats{}, [&]<Format F>(F) {
                if (w.panels) of_format<F>(driver, memory, plan, x, std::array{ProductJob{w, {}, {}, z[i]}}, fast, {});
                else file_rows(driver, x, w, {}, {}, z[i]);
            });
        }
        finish(driver, constant(z[0]), constant(z[1]), nullptr, job);
    }

    static void file_rows(D& driver, Rows<const float> x, const AnyPacked<device>& w, const AnyPacked<device>& up, const After& after, Rows<float> y) {
        with_format(w.dtype, all_formats{}, [&]<Format F>(F) {
            using K = FileRowsProduct<F>;
            K kernel{x, stored<F>(w), up.rows ? stored<F>(up) : Stored{}, y.cols, after, y.data, y.ld};
            driver.launch({ceil_div<int>(y.cols, K::max_threads / warp_size), ceil_div<int>(x.rows, K::n_rows), 1}, K::max_threads, 0, kernel);
        });
    }

    template <Format F>
    static const std::byte* rows_of(const AnyPacked<device>& w) {
        return w.rows ? w.panels + static_cast<std::int64_t>(w.first) * WeightRow<F>::bytes(static_cast<std::int64_t>(w.cols)) : nullptr;
    }

    /// The jobs whose weights are rows of F, as many together as a launch takes.
    template <Format F>
    void of_format(D& driver, std::byte* memory, const Plan& plan, Rows<const float> x, std::span<const ProductJob> jobs, bool fast, const RowNorm& norm) {
        constexpr std::size_t       most = 8;
        std::array<ProductJob, most> batch;
        std::size_t                 n = 0;
        bool                        split = false;
        const auto                  flush = [&] {
            if (n == 0) return;
            const std::span<const ProductJob> of(batch.data(), n);
            if (x.rows <= few_rows) few<F>(driver, x, of, norm);
            else if constexpr (F::dtype == Dtype::f32) fma_tiles(driver, x, of);
            else tiles<F>(driver, memory, plan, x, of, fast);
            n = 0;
        };
        for (const ProductJob& job : jobs) {
            if (job.w.dtype != F::dtype || way_of(job) != Way::rows || job.y.cols == 0) continue;
            if (x.rows > few_rows) {
                if constexpr (F::dtype != Dtype::f32) {
                    if (!split) split_rows<F>(driver, memory, plan, x, fast);
                    split = true;
                }
                if constexpr (F::values_per_block == 1) {
                    if (use_library && library<F>(driver, memory, plan, x, job, fast)) continue;
                }
            }
            batch[n++] = job;
            if (n == most) flush();
        }
        flush();
    }

    template <Format F>
    static void few(D& driver, Rows<const float> x, std::span<const ProductJob> jobs, const RowNorm& norm) {
        if (x.rows == 1) few_of<F, 1>(driver, x, jobs, norm);
        else if (x.rows == 2) few_of<F, 2>(driver, x, jobs, norm);
        else few_of<F, 4>(driver, x, jobs, norm);
    }
    template <Format F, int n_rows>
    static void few_of(D& driver, Rows<const float> x, std::span<const ProductJob> jobs, const RowNorm& norm) {
        using K = Gemv<F, n_rows>;
        K            kernel{.x = x, .norm = norm, .n_jobs = static_cast<std::int32_t>(jobs.size()), .stretch = K::stretch_for(x.cols), .row_blocks = ceil_div<std::int32_t>(x.rows, n_rows), .jobs = {}};
        std::int32_t blocks = 0;
        for (std::size_t i = 0; i < jobs.size(); ++i) {
            const ProductJob&  job = jobs[i];
            const bool         gated = job.up.rows != 0;
            const std::int32_t splits = K::splits_for(job.y.cols, gated, x.cols);
            kernel.jobs[i] = {{rows_of<F>(job.w), rows_of<F>(job.up), job.y.data, job.y.ld, after_of(job), job.y.cols, blocks}, splits};
            blocks += K::blocks_for(job.y.cols, gated, splits);
        }
        driver.launch({blocks * kernel.row_blocks, 1, 1}, K::max_threads, K::shared_bytes(kernel.stretch), kernel);
    }

    template <Format F>
    static void split_rows(D& driver, std::byte* memory, const Plan& plan, Rows<const float> x, bool fast) {
        constexpr int  form = form_of(F::dtype);
        constexpr bool minima = F::dtype == Dtype::q4m;
        SplitRows      kernel{.x = x, .to = memory + plan.form_at[form], .padded = plan.padded, .parts = fast ? 1 : 2,
                              .order = form < 2 ? Columns::plain : form == 2 ? Columns::bytes : Columns::halves, .f16 = F::dtype == Dtype::f16,
                              .scales = reinterpret_cast<float*>(memory + plan.scales_at),
                              .sums = minima ? reinterpret_cast<float*>(memory + plan.sums_at) : nullptr, .ld_sums = plan.ld_sums};
        driver.launch({minima ? static_cast<int>(plan.ld_sums) : x.rows, 1, 1}, SplitRows::max_threads, warp_size * sizeof(float), kernel);
    }

    /// Whether the library has taken the product.
    template <Format F>
    bool library(D& driver, std::byte* memory, const Plan& plan, Rows<const float> x, const ProductJob& job, bool fast) const {
        constexpr bool     whole = F::dtype == Dtype::f32, scaled = F::dtype == Dtype::f16;
        const bool         gated = job.up.rows != 0, at_once = !gated && !scaled && job.after.act == Activation::none && job.after.gamma.data() == nullptr;
        const std::int64_t ldw = WeightRow<F>::bytes(x.cols) / static_cast<std::int64_t>(sizeof(typename F::block));
        const auto         product = [&](const AnyPacked<device>& w, bool with_after, Rows<float> y) {
            LibraryProduct p{.type = F::dtype, .m = x.rows, .n = y.cols, .k = whole ? x.cols : ldw, .x = x.data, .ldx = x.ld, .w = rows_of<F>(w), .ldw = ldw,
                             .bias = with_after ? job.after.bias.data() : nullptr, .add = with_after && job.after.add, .y = y.data, .ldy = y.ld};
            if constexpr (!whole) {
                p.x = memory + plan.form_at[form_of(F::dtype)], p.ldx = plan.padded;
                if (!driver.multiply(p)) return false;
                if (fast) return true;
                p.x = memory + plan.form_at[form_of(F::dtype)] + std::int64_t{x.rows} * plan.padded * 2;
                p.bias = nullptr, p.add = true;
                if (driver.multiply(p)) return true;
                if (with_after && job.after.add) throw DeviceError{"multiply", 0, "a library that takes a product added to a matrix takes another of its size, too"};
                return false;  // who comes after it writes all of y
            } else {
                return driver.multiply(p);
            }
        };
        if (at_once) return product(job.w, true, job.y);
        // Sums may wait where the result will be, unless it is added to.
        float* const      results = reinterpret_cast<float*>(memory + plan.results_at);
        const std::size_t size = static_cast<std::size_t>(x.rows) * job.w.rows;
        const auto        own = [&](std::size_t i) { return Rows<float>{results + i * size, x.rows, job.y.cols, job.y.cols}; };
        const Rows<float> z = gated || job.after.add ? own(0) : job.y;
        const Rows<float> up = !gated ? Rows<float>{} : job.after.add ? own(1) : job.y;
        if (!product(job.w, false, z) || (gated && !product(job.up, false, up))) return false;
        finish(driver, constant(z), constant(up), scaled ? reinterpret_cast<const float*>(memory + plan.scales_at) : nullptr, job);
        return true;
    }
    static Rows<const float> constant(Rows<float> r) { return {r.data, r.rows, r.cols, r.ld}; }

    static void fma_tiles(D& driver, Rows<const float> x, std::span<const ProductJob> jobs) {
        using K = FmaTileProduct;
        K                  kernel{.x = x, .n_jobs = static_cast<std::int32_t>(jobs.size()), .jobs = {}};
        const std::int32_t across = fill<f32>(kernel, jobs);
        driver.launch({across * ceil_div<std::int32_t>(x.rows, K::tile), 1, 1}, K::max_threads, K::shared_bytes, kernel);
    }

    template <Format F, class K>
    static std::int32_t fill(K& kernel, std::span<const ProductJob> jobs) {
        std::int32_t across = 0;
        for (std::size_t i = 0; i < jobs.size(); ++i) {
            const ProductJob& job = jobs[i];
            static_cast<KernelJob&>(kernel.jobs[i]) = {rows_of<F>(job.w), rows_of<F>(job.up), job.y.data, job.y.ld, after_of(job), job.y.cols, across};
            across += K::tiles_across(job.y.cols, job.up.rows != 0);
        }
        return across;
    }

    template <Format F>
    void tiles(D& driver, std::byte* memory, const Plan& plan, Rows<const float> x, std::span<const ProductJob> jobs, bool fast) {
        if (fast) tiles_in<F, 1>(driver, memory, plan, x, jobs);
        else tiles_in<F, 2>(driver, memory, plan, x, jobs);
    }
    /// Tiles of the size with which a multiprocessor is done first: as many as it gets, times what a step of one costs. Their size
    /// changes no bit.
    template <Format F, int parts>
    void tiles_in(D& driver, std::byte* memory, const Plan& plan, Rows<const float> x, std::span<const ProductJob> jobs) {
        const auto n_tiles = [&](std::int64_t bm, std::int64_t bn) {
            std::int64_t n = 0;
            for (const ProductJob& job : jobs) n += ceil_div<std::int64_t>(job.y.cols, job.up.rows ? bn / 2 : bn) * parts_of(x, job).n;
            return n * ceil_div<std::int64_t>(x.rows, bm);
        };
        const auto cost = [&](std::int64_t bm, std::int64_t bn, std::int64_t of_step) {
            return ceil_div<std::int64_t>(n_tiles(bm, bn), driver.n_processors()) * of_step;
        };
        // what a block issues in a step: half the result costs more than half, for there is as much to copy and to take apart
        const std::int64_t large = cost(128, 128, 18), middle = cost(64, 128, 14), small = cost(64, 64, 10);
        if (x.rows > ColumnParts::most_rows && large <= middle && large <= small) tiles_of<TileProduct<F, parts, 128, 128>, F>(driver, memory, plan, x, jobs);
        else if (middle <= small) tiles_of<TileProduct<F, parts, 64, 128>, F>(driver, memory, plan, x, jobs);
        else tiles_of<TileProduct<F, parts, 64, 64>, F>(driver, memory, plan, x, jobs);
    }
    template <class K, Format F>
    void tiles_of(D& driver, std::byte* memory, const Plan& plan, Rows<const float> x, std::span<const ProductJob> jobs) {
        K kernel{};
        kernel.x = memory + plan.form_at[form_of(F::dtype)];
        if (F::dtype == Dtype::f16) kernel.row_scales = reinterpret_cast<const float*>(memory + plan.scales_at);
        if (F::dtype == Dtype::q4m) kernel.sums = reinterpret_cast<const float*>(memory + plan.sums_at), kernel.ld_sums = plan.ld_sums;
        kernel.m = x.rows, kernel.cols = x.cols, kernel.n_jobs = static_cast<std::int32_t>(jobs.size());
        const std::int32_t across = fill<F>(kernel, jobs);
        std::int32_t       most_parts = 1, first_part = 0;
        for (std::size_t i = 0; i < jobs.size(); ++i) {
            const ColumnParts parts = parts_of(x, jobs[i]);
            kernel.jobs[i].parts = parts, kernel.jobs[i].first_part = first_part;
            if (parts.n > 1) first_part += K::tiles_across(jobs[i].y.cols, jobs[i].up.rows != 0) * parts.n, most_parts = larger(most_parts, parts.n);
        }
        if (most_parts > 1) kernel.tickets = tickets(driver), kernel.partial = reinterpret_cast<float*>(memory + plan.partial_at);
        driver.launch({across * kernel.tiles_down(), most_parts, 1}, K::max_threads, K::shared_bytes, kernel);
    }
    static ColumnParts parts_of(Rows<const float> x, const ProductJob& job) {
        if (x.rows > ColumnParts::most_rows) return {ceil_div<std::int32_t>(x.cols, 32), 1};
        return ColumnParts::of(std::int64_t{job.up.rows ? 2 : 1} * job.y.cols, x.cols);
    }
    /// Counters of a branch, which stay at zero between launches.
    std::uint32_t* tickets(D& driver) {
        constexpr std::size_t bytes = TileProduct<bf16, 1, 64, 64>::max_jobs * ColumnParts::most_tiles * sizeof(std::uint32_t);
        Buffer<device>&       kept = tickets_[static_cast<std::size_t>(driver.branch())];
        if (kept.bytes() == 0) kept = driver.allocate_cleared(bytes, bytes);
        return kept.template as<std::uint32_t>();
    }

    std::array<Buffer<device>, 2> tickets_;
};

}  // namespace prism::cuda
