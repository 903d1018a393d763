// train_stage: one stage of training, from its first batch or from where it was killed to its last checkpoint.
//
//     prism::RunFolder folder{"runs", id, "Finetune/Step"};
//     prism::train_stage(trainer, examples, {.stage = prism::Stage::finetune, .settings = config.finetune}, folder);
//
// The outcome depends on the plan, the data and the first parameters alone, not on where the run was interrupted. Several
// processes do the same together: see Ranks, and prism/train/mpi.hpp.
// Source of the loop and its numbers: TRI-ML/prismatic-vlms, prismatic/training/strategies/base_strategy.py and
// prismatic/training/metrics.py.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/checkpoint.hpp"
#include "prism/io/json.hpp"
#include "prism/train/data/loader.hpp"
#include "prism/train/ranks.hpp"
#include "prism/train/run/loss_curve.hpp"
#include "prism/train/run/run_folder.hpp"
#include "prism/train/run/train_config.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <iterator>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace prism {

/// Numbers that a trainer keeps and a run saves, as [shape].
struct NamedSpan {
    std::string              name;
    std::vector<std::size_t> shape;
    std::span<float>         values;
};

/// What a stage needs of whatever computes gradients. Names of parameters begin with the key of their part, which is
/// where a checkpoint puts them: "projector.projector.0.weight".
template <class T>
concept StageTrainer = requires(T& trainer, const Batch& batch, double number, std::uint64_t steps) {
    { trainer.micro_step(batch, number) } -> std::convertible_to<double>;  // the mean loss; its gradients, times the number, are added up
    { trainer.step(number) } -> std::convertible_to<double>;               // AdamW at that rate; the norm of the gradients, which are then cleared
    trainer.clear_gradients();
    { trainer.parameters() } -> std::same_as<std::vector<NamedSpan>>;
    { trainer.moments() } -> std::same_as<std::vector<NamedSpan>>;  // of this rank's share: those of all ranks one after another are the whole
    trainer.set_steps(steps);  // that were taken before: moments and parameters have been put back
};
/// One that does not need to see every picture: asked from any thread; what it says once holds.
template <class T>
concept KnowsPictures = requires(const T& trainer, std::size_t example) {
    { trainer.knows_picture(example) } -> std::same_as<bool>;
};
/// One that has more to say in lines of metrics, by names to which the stage's is put in front.
template <class T>
concept HasMetrics = requires(const T& trainer) {
    { trainer.metrics() } -> std::same_as<Json>;
};

/// One to which it matters how many micro-steps of a step came before, made or passed over.
template <class T>
concept CountsMicroSteps = requires(T& trainer) { trainer.pass_over(); };

/// A run that cannot go on: a loss or gradient that is no number.
class TrainingError : public Error {
public:
    TrainingError(const std::string& what, std::size_t step, std::vector<std::size_t> examples, std::string checkpoint)
        : Error(what), step(step), examples(std::move(examples)), checkpoint(std::move(checkpoint)) {}

    std::size_t              step;
    std::vector<std::size_t> examples;    // of the batch, or of all batches of the step
    std::string              checkpoint;  // the last good one; empty before the first
};

struct StagePlan {
    Stage         stage = Stage::finetune;
    StageSettings settings;
    std::uint64_t seed = 7;
    std::size_t   checkpoint_every = 0;  // steps; 0: at the end of epochs, or at max_steps
    LoaderOptions loader{};
    Ranks         ranks{};  // that take the micro-batches of a step in turn
    Json          identity = Json::object();  // settings that a resumed run has to share with the one it goes on from
    Json          machine = Json::object();   // what it may have differently, with other bits from there on: see StageHooks::on_change
};

struct StageProgress {
    std::size_t         step, n_steps, epoch;
    double              loss, smooth_loss, learning_rate, gradient_norm, step_s;
    const LoaderCounts& loader;
};

/// Called on the first rank.
struct StageHooks {
    std::function<void(std::size_t step, std::size_t n_steps)> on_begin{};  // where the stage goes on, and where it ends
    std::function<bool(const StageProgress&)> on_step{};  // false: stop here, with a checkpoint
    std::function<void(const std::string& sentence)> on_change{};  // a run goes on with another `machine` than it was left with
};

struct StageResult {
    std::size_t  steps = 0;
    double       loss = 0;  // the mean of the last 128 micro-batches
    bool         finished = false;
    LoaderCounts loader{};  // of this rank; what was skipped is of all, since the stage began, the first of it since this process did
};

/// "Full-finetune": how lines of metrics call a stage.
inline std::string metrics_name(Stage stage) {
    std::string name{to_string(stage)};
    name[0] = static_cast<char>(name[0] - 'a' + 'A');
    return name;
}

/// The examples of every batch of a stage, epoch after epoch, and whose turn it is. Batches are those of one process, however many
/// ranks there are; the reference deals examples to them instead, so that what is in a batch depends on their number. In a
/// fine-tuning stage neighbours of a step are of like length, so ranks have about the same to do.
class StageOrder {
public:
    /// `sizes` outlive it. Throws ConfigError where there are fewer examples than a global batch, or more steps than 100 epochs have.
    StageOrder(const StagePlan& plan, std::span<const ExampleSize> sizes) : plan_(&plan), sizes_(sizes) {
        const StageSettings& s = plan.settings;
        if (s.global_batch_size % (s.per_device_batch_size * plan.ranks.n()) != 0)
            throw ConfigError{"global_batch_size", std::to_string(s.global_batch_size),
                              "a multiple of " + std::to_string(plan.ranks.n()) + " ranks with batches of " + std::to_string(s.per_device_batch_size)};
        accumulation = s.global_batch_size / s.per_device_batch_size;
        batches_per_epoch = (order(0).size() + s.per_device_batch_size - 1) / s.per_device_batch_size;
        steps_per_epoch = batches_per_epoch / accumulation;
        if (steps_per_epoch == 0)
            throw ConfigError{"global_batch_size", std::to_string(s.global_batch_size), "at most the " + std::to_string(sizes.size()) + " examples"};
        // A cap beyond one epoch takes as many epochs as it needs, up to a hundred. There the original ends before the cap, with a
        // rate that is still high.
        n_epochs = s.max_steps && *s.max_steps > steps_per_epoch ? 100 : s.epochs;
        const std::size_t most = steps_per_epoch * n_epochs;
        if (s.max_steps.value_or(0) > most) throw ConfigError{"max_steps", std::to_string(*s.max_steps), "at most the " + std::to_string(most) + " steps of " + std::to_string(n_epochs) + " epochs"};
        scheduled_steps = s.max_steps.value_or((sizes.size() + s.global_batch_size - 1) / s.global_batch_size * s.epochs);
        n_steps = s.max_steps.value_or(most);
    }

    std::size_t accumulation, batches_per_epoch, steps_per_epoch, n_epochs;
    std::size_t scheduled_steps;  // what the learning rate is spread over
    std::size_t n_steps;          // that are taken

    /// Batch `i` of this rank, none after the last: of every epoch, each n-th.
    std::vector<std::size_t> own_batch(std::size_t i) {
        const std::size_t n = plan_->ranks.n(), rank = plan_->ranks.rank(), per_epoch = own(batches_per_epoch);
        return per_epoch ? batch(i / per_epoch * batches_per_epoch + i % per_epoch * n + rank) : std::vector<std::size_t>{};
    }
    /// How many of the stage's first k batches are this rank's.
    std::size_t own_before(std::size_t k) const { return k / batches_per_epoch * own(batches_per_epoch) + own(k % batches_per_epoch); }

    /// Batch `k` of the whole stage, none after the last.
    std::vector<std::size_t> batch(std::size_t k) {
        const std::size_t epoch = k / batches_per_epoch;
        if (epoch >= n_epochs) return {};
        const auto&       all = order(epoch);
        const std::size_t begin = k % batches_per_epoch * plan_->settings.per_device_batch_size, end = std::min(all.size(), begin + plan_->settings.per_device_batch_size);
        return {all.begin() + static_cast<std::ptrdiff_t>(begin), all.begin() + static_cast<std::ptrdiff_t>(end)};
    }

private:
    /// This rank's part of the first k batches of an epoch.
    std::size_t own(std::size_t k) const { return (k + plan_->ranks.n() - 1 - plan_->ranks.rank()) / plan_->ranks.n(); }

    const std::vector<std::size_t>& order(std::size_t epoch) {
        if (order_.empty() || epoch != epoch_) {
            const SamplerOptions options{.global_batch = plan_->settings.global_batch_size, .seed = plan_->seed, .epoch = epoch};
            order_ = plan_->stage == Stage::align ? shuffled_order(sizes_.size(), options) : split_modality_order(sizes_, options);
            epoch_ = epoch;
        }
        return order_;
    }

    const StagePlan*             plan_;
    std::span<const ExampleSize> sizes_;
    std::vector<std::size_t>     order_;
    std::size_t                  epoch_ = 0;
};

namespace detail {

/// Means over the last losses, kept as the reference keeps them.
class LossWindow {
public:
    static constexpr std::size_t most = 128;

    void push(double loss) {
        losses_.push_back(loss);
        if (losses_.size() > most) losses_.pop_front();
    }
    double mean() const { return empty() ? 0 : std::accumulate(losses_.begin(), losses_.end(), 0.0) / static_cast<double>(losses_.size()); }
    bool   empty() const { return losses_.empty(); }
    double last() const { return losses_.empty() ? 0 : losses_.back(); }
    Json   json() const { return losses_; }
    void   restore(const Json& json) { losses_ = json.get<std::deque<double>>(); }

private:
    std::deque<double> losses_;
};

/// Throws ConfigError for the first setting in which two runs differ. In what earlier versions saved the data of another stage
/// counts as well; it is passed over.
inline void expect_same_run(const Json& before, const Json& now, const std::string& file, const char* otherwise = "another run needs another run_id") {
    if (before == now) return;
    const Json was = before.flatten(), is = now.flatten();
    for (const auto* side : {&was, &is})
        for (const auto& [key, unused] : side->items()) {
            const auto a = was.find(key), b = is.find(key);
            if ((a == was.end() || b == is.end()) && key.find("_stage_components/") != key.npos) continue;
            const std::string then = a == was.end() ? "nothing" : a->dump(), today = b == is.end() ? "nothing" : b->dump();
            if (then != today) throw ConfigError{file, key, today, then + ", which the run to be resumed had; " + otherwise};
        }
}

/// What tells data from other data: how many rows, and a sum over what is known of each.
inline Json data_of(std::span<const ExampleSize> sizes) {
    std::uint32_t sum = 0;
    for (const ExampleSize& s : sizes) sum = sum * 31 + static_cast<std::uint32_t>(2 * s.words + s.picture);
    return {{"rows", sizes.size()}, {"rows_checksum", sum}};
}

/// Throws ConfigError on every rank whose settings or data are not those of the first: a file that one machine has in another version.
inline void expect_same_everywhere(const Ranks& ranks, const StagePlan& plan, const Json& data) {
    const std::string both = plan.identity.dump() + data.dump();
    ranks.together([&, all = ranks.gather(crc32_of(std::as_bytes(std::span(both))))] {
        if (all[ranks.rank()] != all[0]) throw ConfigError{"rank", std::to_string(ranks.rank()), "a rank with the configuration and the annotations of the first"};
    });
}

/// The first text that is not empty, in the order of ranks. Collective.
inline std::string any_text(const Ranks& ranks, std::string mine) {
    const auto        sizes = ranks.gather(mine.size());
    const std::size_t most = std::ranges::max(sizes);
    if (most == 0) return mine;
    mine.resize(most);
    const auto all = ranks.gather(std::span<const char>(mine));
    const auto r = static_cast<std::size_t>(std::ranges::find_if(sizes, [](std::size_t n) { return n > 0; }) - sizes.begin());
    return {all.data() + r * most, sizes[r]};
}

/// Parameters by the key of their part, as checkpoints have them.
inline TorchDict model_dict(const std::vector<NamedSpan>& parameters) {
    TorchDict model;
    for (const NamedSpan& p : parameters) {
        const std::size_t dot = p.name.find('.');
        const std::string part = p.name.substr(0, dot);
        if (model.empty() || model.back().name != part) model.push_back({part, TorchDict{}});
        model.back().items.push_back({p.name.substr(dot + 1), TensorInfo{p.name, Dtype::f32, p.shape, {}, reinterpret_cast<const std::byte*>(p.values.data()), nullptr, "the trainer"}});
    }
    return model;
}

}  // namespace detail

/// Gives parameters the values that a checkpoint has for them. Throws LoadError where one is missing or has another shape.
inline void restore_parameters(const std::vector<NamedSpan>& parameters, const std::filesystem::path& checkpoint) {
    const Checkpoint file = Checkpoint::open(checkpoint).below("model");
    for (const NamedSpan& p : parameters) {
        const TensorInfo* tensor = file.find(p.name);
        if (!tensor || tensor->shape != p.shape) throw LoadError{checkpoint.string(), "model." + p.name, to_string(p.shape), tensor ? to_string(tensor->shape) : "nothing"};
        const auto values = to_floats(*tensor);
        std::ranges::copy(values, p.values.begin());
    }
}

/// Trains a stage to its end, from the last checkpoint in `folder` if there is one. Throws TrainingError for a loss that is
/// no number, ExampleError for an example that cannot be used (unless the plan skips such), ConfigError for a plan that
/// does not fit the data, for another plan or other data than those of the run that is resumed, and when no example at all could
/// be used up to a checkpoint, LoadError when the disk fails or a checkpoint has no state. The folder is then at its last checkpoint;
/// a run that is refused leaves it as it was. Of several ranks the first has the folder, and null is that of the others; they get
/// parameters and state from the first. When one of them throws, the others throw RankError.
template <StageTrainer T, ExampleSource S>
StageResult train_stage(T& trainer, const S& source, const StagePlan& plan, RunFolder* folder, const StageHooks& hooks = {}) {
    const Ranks&       ranks = plan.ranks;
    StageOrder         order = ranks.together([&] { return StageOrder{plan, source.sizes()}; });
    const std::string  name = metrics_name(plan.stage);
    detail::LossWindow losses;
    std::size_t        step = 0, k = 0;  // optimiser steps, batches
    std::uint64_t      skipped_before = 0;
    std::string        good;

    const Json data = detail::data_of(source.sizes());
    detail::expect_same_everywhere(ranks, plan, data);
    std::optional<ResumePoint> point;
    const auto                 resume = [&] {
        const Json& contents = point->bundle.contents;
        const auto  file = point->bundle.file->path();
        try {
            detail::expect_same_run(contents.at("identity"), plan.identity, file);
            if (contents.contains("data")) detail::expect_same_run({{"data", contents.at("data")}}, {{"data", data}}, file);  // not in states of earlier versions
            step = point->step, k = contents.at("next_batch").template get<std::size_t>();
            skipped_before = contents.value("skipped", std::uint64_t{0});
            losses.restore(contents.at("losses"));
            const Json machine = contents.value("machine", Json::object());
            for (const auto& [key, was] : machine.items()) {
                const Json now = plan.machine.value(key, Json());
                if (hooks.on_change && now != was) hooks.on_change(file + ": '" + key + "' was " + was.dump() + " and is " + now.dump() + ": from here on the bits are not those of an unbroken run");
            }
        } catch (const Json::exception&) { throw FormatError{file, detail::bundle_header_at, "the state is not that of a training stage"}; }
        restore_parameters(trainer.parameters(), point->checkpoint);
        good = point->checkpoint.string();
    };
    ranks.together([&] {
        if (folder) point = folder->resume_point();
        if (point) resume();
    });
    if (ranks.n() > 1) {
        step = ranks.of_first(step), k = ranks.of_first(k), good = ranks.of_first(good), skipped_before = ranks.of_first(skipped_before);
        losses.restore(parse_json(ranks.of_first(losses.json().dump()), "the first rank"));
        for (const NamedSpan& p : trainer.parameters()) ranks.broadcast(p.values);
    }
    if (ranks.of_first(point.has_value())) {
        for (const NamedSpan& m : trainer.moments()) {
            const auto sizes = ranks.gather(m.values.size_bytes());
            const auto whole = ranks.together([&] { return point ? point->entry(m.name, std::accumulate(sizes.begin(), sizes.end(), std::size_t{0})) : std::span<const std::byte>{}; });
            ranks.deal(whole, m.values);
        }
        point.reset();  // the next checkpoint takes its place on disk
        trainer.set_steps(step);
    }

    std::vector<LossPoint> curve;
    const auto             begin = [&] {
        folder->go_on(step, good);
        for (const Json& line : folder->metrics())
            if (line.contains(name + "/Step")) curve.push_back({line.at(name + "/Step").template get<double>(), line.at(name + "/Loss (Raw)").template get<double>(), line.at(name + "/Loss").template get<double>()});
        if (hooks.on_begin) hooks.on_begin(step, order.n_steps);
    };
    ranks.together([&] {
        if (folder) begin();
    });

    std::deque<double> durations;
    LoaderOptions      reading = plan.loader;
    if constexpr (KnowsPictures<T>) reading.known = [&trainer](std::size_t example) { return trainer.knows_picture(example); };
    Loader loader{source, [&](std::size_t i) { return order.own_batch(i); }, reading, order.own_before(k)};

    const auto n_skipped = [&] {
        const auto all = ranks.gather(loader.counts().skipped);
        return std::accumulate(all.begin(), all.end(), skipped_before);
    };
    const auto save = [&] {
        const RunPoint                  here{step, (k - 1) / order.batches_per_epoch, losses.last()};
        const std::uint64_t             skipped = n_skipped();
        std::vector<std::vector<float>> stores;
        std::vector<BundleEntry>        entries;
        for (const NamedSpan& m : trainer.moments()) entries.push_back({.name = m.name, .bytes = std::as_bytes(ranks.collect(m.values, stores.emplace_back()))});
        ranks.together([&] {
            if (!folder) return;
            if (losses.empty()) throw ConfigError{"examples", "0", "at least one that is not skipped; the first one skipped: " + loader.counts().first_skipped};
            folder->save(here, detail::model_dict(trainer.parameters()),
                         {{"identity", plan.identity}, {"data", data}, {"machine", plan.machine}, {"next_batch", k}, {"losses", losses.json()}, {"skipped", skipped}}, entries);
            if (!curve.empty()) write_png(folder->path() / "loss.png", loss_curve(curve));
            good = (folder->path() / "checkpoints" / checkpoint_name(here)).string();
        });
        good = ranks.of_first(good);
    };

    const std::size_t last_batch = order.n_epochs * order.batches_per_epoch;
    bool              stop = false;
    auto              begun = std::chrono::steady_clock::now();
    // A cap on steps ends the stage at once; otherwise batches that are too few for a step are still looked at.
    const auto finished = [&] { return k >= last_batch || (plan.settings.max_steps && step >= order.n_steps); };
    while (!finished() && !stop) {
        const auto refuse = [&](const std::string& what, double value, const std::string& where, const std::vector<std::size_t>& examples) {
            throw TrainingError{"step " + std::to_string(step + 1) + ": the " + what + " is " + std::to_string(value) + ", in a " + where + " of " + detail::names_of(source, examples) +
                                    (good.empty() ? "; there is no checkpoint yet" : "; the last good checkpoint is " + good),
                                step + 1, examples, good};
        };
        const std::size_t in_epoch = k % order.batches_per_epoch, n = std::min(order.accumulation, order.batches_per_epoch - in_epoch);
        if (in_epoch == 0) trainer.clear_gradients();  // of batches that were too few for a step
        // Of some batches nothing is left. A step's gradient is the mean over all of its batches, theirs being 0, so that the others
        // weigh what they always do; its loss is the mean over the others. They have NaN for a loss, as no other batch can, and so
        // every rank knows which they are.
        std::vector<double> own(order.accumulation / ranks.n()), of_step;
        ranks.together([&] {
            for (std::size_t i = ranks.rank(); i < n; i += ranks.n()) {
                const Batch* batch = loader.next();
                double&      loss = own[i / ranks.n()];
                if (batch->n_rows() == 0) {
                    loss = std::numeric_limits<double>::quiet_NaN();
                    if constexpr (CountsMicroSteps<T>) trainer.pass_over();
                    continue;
                }
                loss = trainer.micro_step(*batch, 1.0 / static_cast<double>(order.accumulation));
                if (!std::isfinite(loss)) refuse("loss", loss, "batch", batch->examples);
            }
        });
        const auto all = ranks.gather(std::span<const double>(own));
        for (std::size_t i = 0; i < n; ++i)
            if (const double loss = all[i % ranks.n() * own.size() + i / ranks.n()]; !std::isnan(loss)) losses.push(loss), of_step.push_back(loss);
        k += n;
        const bool stepped = n == order.accumulation;
        if (stepped) {
            const double norm = trainer.step(learning_rate(plan.settings, step, order.scheduled_steps));
            const auto   report = [&] {
                if (!std::isfinite(norm)) {  // of all ranks' batches; threads of the loader work with `order`
                    StageOrder               again{plan, source.sizes()};
                    std::vector<std::size_t> examples;
                    for (std::size_t i = k - n; i < k; ++i) std::ranges::copy(again.batch(i), std::back_inserter(examples));
                    refuse("norm of the gradients", norm, "step", examples);
                }
                const auto now = std::chrono::steady_clock::now();
                durations.push_back(std::chrono::duration<double>(now - std::exchange(begun, now)).count());
                if (durations.size() > detail::LossWindow::most) durations.pop_front();
                const double rate = learning_rate(plan.settings, step + 1, order.scheduled_steps);
                const double raw = of_step.empty() ? losses.mean() : std::accumulate(of_step.begin(), of_step.end(), 0.0) / static_cast<double>(of_step.size());
                const double step_s = std::accumulate(durations.begin(), durations.end(), 0.0) / static_cast<double>(durations.size());
                Json line{{name + "/Learning Rate", rate}, {name + "/Loss", losses.mean()}, {name + "/Loss (Raw)", raw}, {name + "/Step", step + 1}, {name + "/Step Time", step_s}};
                if constexpr (HasMetrics<T>) {
                    const Json more = trainer.metrics();
                    for (const auto& [key, value] : more.items()) line[name + "/" + key] = value;
                }
                folder->log(line);
                curve.push_back({static_cast<double>(step + 1), raw, losses.mean()});
                if (hooks.on_step) stop = !hooks.on_step({step + 1, order.n_steps, (k - 1) / order.batches_per_epoch, raw, losses.mean(), rate, norm, step_s, loader.counts()});
            };
            ranks.together([&] {
                if (folder) report();
            });
            stop = ranks.of_first(stop), ++step;
        }
        const bool ends = plan.settings.max_steps ? stepped && step == order.n_steps : k % order.batches_per_epoch == 0;
        if (ends || stop || (stepped && plan.checkpoint_every > 0 && step % plan.checkpoint_every == 0)) save();
    }
    StageResult result{step, losses.mean(), finished(), loader.counts()};
    result.loader.skipped = n_skipped(), result.loader.first_skipped = detail::any_text(ranks, result.loader.first_skipped);
    return result;
}
/// The same for a process that is alone.
template <StageTrainer T, ExampleSource S>
StageResult train_stage(T& trainer, const S& source, const StagePlan& plan, RunFolder& folder, const StageHooks& hooks = {}) {
    return train_stage(trainer, source, plan, &folder, hooks);
}

}  // namespace prism
