// Optimizer: AdamW over flat arenas, with linear warm-up and cosine decay, clipping by the global norm, and accumulation.
// Source of every rule: TRI-ML/prismatic-vlms, training/strategies; transformers, optimization.py; torch/optim/adamw.py.
//
//     Optimizer<B> opt{be, model, [](std::string_view name) { return true; }, {.lr = 2e-5, .total_steps = 5198}};
//     ... gradients are added to opt.gradients() ...
//     const StepReport r = opt.step(be);
#pragma once

#include "prism/train/arena.hpp"
#include "prism/train/ranks.hpp"
#include "prism/train/schedule.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

namespace prism {

/// Which parameters weight decay shrinks.
enum class Decay {
    by_shape,  // those with more than one dimension whose name does not end in ".bias"
    none,
};

struct OptimizerOptions {
    double        lr = 2e-5;  // peak
    double        beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.1;
    Decay         decay = Decay::by_shape;
    double        max_grad_norm = 1;  // of all gradients together; 0 does not clip
    std::uint64_t total_steps = 1;
    double        warmup_ratio = 0.03;
};

struct StepReport {
    std::uint64_t step = 0;       // that was made: 1, 2, ...
    double        lr = 0;         // that it used
    double        grad_norm = 0;  // before clipping
    bool          finite = true;  // false: the norm is no finite number; no parameter was changed, and the gradients are still there
};

/// How several processes share the work of a step. Each has all parameters, gradients of its own, and the moments of one share,
/// values bounds[rank] to bounds[rank + 1] of the layout.
template <Backend B>
struct Sharing {
    std::size_t rank = 0, n_ranks = 1;
    std::function<void(Vec<B> gradients, std::span<const std::size_t> bounds)>  sum{};    // of all processes, in a fixed order, for the own share
    std::function<double(double mine)>                                          total{};  // of all processes
    std::function<void(Vec<B> parameters, std::span<const std::size_t> bounds)> gather{};  // process r has its share anew
};
/// The same for ranks, on a backend whose memory the host reads.
template <Backend B>
    requires std::same_as<typename B::space, host>
Sharing<B> sharing(const Ranks& ranks) {
    if (ranks.n() == 1) return {};
    return {ranks.rank(), ranks.n(), [ranks](Vec<B> gradients, std::span<const std::size_t> bounds) { ranks.sum_shares(gradients.span(), bounds); },
            [ranks](double mine) { return ranks.total(mine); },
            [ranks](Vec<B> parameters, std::span<const std::size_t> bounds) { ranks.gather_shares(parameters.span(), bounds); }};
}

/// The trained parameters of a model, their gradients and both moments, as flat arenas of one layout. Movable.
template <TrainingBackend B>
class Optimizer {
public:
    /// The parameters of `model` that `trained` picks move into an arena, where the model goes on reading them.
    template <class M, class Pick>
    Optimizer(B& be, M& model, Pick&& trained, OptimizerOptions options, Sharing<B> sharing = {})
        : Optimizer(be, arena_layout(model, trained), options, std::move(sharing)) {
        parameters_.adopt(be, model);
    }
    /// Parameters of a layout, all 0 at first.
    Optimizer(B& be, ArenaLayout parameters, OptimizerOptions options, Sharing<B> sharing = {})
        : options_(options), sharing_(std::move(sharing)), parameters_(be, std::move(parameters)), gradients_(be, parameters_.layout()),
          bounds_(bounds(layout().size, sharing_.n_ranks)), m_(be, part_of_layout()), v_(be, part_of_layout()) {
        for (const Slot& s : layout().slots) {
            const bool decays = options_.decay == Decay::by_shape && s.shape.size() > 1 && !s.name.ends_with(".bias");
            if (runs_.empty() || runs_.back().decays != decays) runs_.push_back({s.offset, layout().size, decays});
            if (runs_.size() > 1) runs_[runs_.size() - 2].end = runs_.back().begin;
        }
    }

    const OptimizerOptions& options() const { return options_; }
    const Sharing<B>&       sharing() const { return sharing_; }
    /// Names, shapes and places in `parameters` and `gradients`, and, less first_moment(), in the moments.
    const ArenaLayout&   layout() const { return parameters_.layout(); }
    const Arena<B>& parameters() const { return parameters_; }
    const Arena<B>& gradients() const { return gradients_; }
    /// Both moments of the share of this process, which begins at value first_moment() of the layout; of everything where there
    /// is one process.
    Vec<B>          m() const { return m_.values(); }
    Vec<B>          v() const { return v_.values(); }
    std::size_t     first_moment() const { return bounds_[sharing_.rank]; }

    /// Steps that have been made. Set together with parameters and moments, it resumes a run with the same bits.
    std::uint64_t steps() const { return steps_; }
    void          set_steps(std::uint64_t n) { steps_ = n; }
    /// The rate of the next step by the options' schedule.
    double        next_lr() const { return warmup_cosine(options_.lr, options_.warmup_ratio, steps_, options_.total_steps); }

    /// One step with the gradients, which are 0 afterwards; those of several processes are added up before. Where their norm is
    /// no finite number no parameter changes.
    StepReport step(B& be) { return step(be, next_lr()); }
    /// The same at a rate of the caller's.
    StepReport step(B& be, double lr) {
        if (sharing_.sum) sharing_.sum(gradients_.values(), bounds_);
        const std::size_t first = bounds_[sharing_.rank], last = bounds_[sharing_.rank + 1];
        const auto        between = [](Vec<B> all, std::size_t begin, std::size_t end) { return Vec<B>{all.data() ? all.data() + begin : nullptr, {end - begin}}; };
        double            squares = ops::squared_norm<B>(be, between(gradients_.values(), first, last));
        if (sharing_.total) squares = sharing_.total(squares);
        StepReport report{.step = steps_ + 1, .lr = lr};
        report.grad_norm = std::sqrt(squares);
        report.finite = std::isfinite(report.grad_norm);
        if (!report.finite) return report;
        ++steps_;
        AdamWStep one{.lr = report.lr, .beta1 = options_.beta1, .beta2 = options_.beta2, .eps = options_.eps, .step = steps_};
        if (options_.max_grad_norm > 0) one.clip = static_cast<float>(std::min(1.0, options_.max_grad_norm / (report.grad_norm + 1e-6)));
        for (const Run& run : runs_) {
            const std::size_t begin = std::max(first, run.begin), end = std::min(last, run.end);
            if (begin >= end) continue;
            one.decay = run.decays ? options_.weight_decay : 0;
            ops::adamw<B>(be, between(parameters_.values(), begin, end), between(gradients_.values(), begin, end), between(m_.values(), begin - first, end - first),
                          between(v_.values(), begin - first, end - first), one);
        }
        if (sharing_.gather) sharing_.gather(parameters_.values(), bounds_);
        gradients_.clear(be);
        return report;
    }

private:
    struct Run {
        std::size_t begin, end;  // values
        bool        decays;
    };

    /// Shares of about one size, cut at multiples of 16 values.
    static std::vector<std::size_t> bounds(std::size_t size, std::size_t n) {
        std::vector<std::size_t> at(n + 1);
        for (std::size_t r = 0; r <= n; ++r) at[r] = size / 16 * r / n * 16;
        return at;
    }
    ArenaLayout part_of_layout() const { return {{}, bounds_[sharing_.rank + 1] - bounds_[sharing_.rank]}; }

    OptimizerOptions         options_;
    Sharing<B>               sharing_;
    Arena<B>                 parameters_, gradients_;
    std::vector<std::size_t> bounds_;
    Arena<B>                 m_, v_;
    std::vector<Run>         runs_;
    std::uint64_t            steps_ = 0;
};

}  // namespace prism
