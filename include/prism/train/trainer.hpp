// Trainer: a model in training. Micro-steps add up gradients, steps use them.
//
//     prism::Trainer trainer{cpu, vlm, prism::Stage::finetune, {.optimizer = {.lr = 2e-5, .total_steps = 5198}, .accumulation = 4}};
//     for (const auto& batch : batches) {
//         const double loss = trainer.micro_step(batch);
//         if (trainer.due()) log(loss, trainer.step());
//     }
#pragma once

#include "prism/backend/dry/training.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/train/low_rank.hpp"
#include "prism/train/optimizer.hpp"
#include "prism/train/pass.hpp"

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace prism {

struct TrainerOptions {
    OptimizerOptions optimizer{};
    std::size_t      accumulation = 1;  // micro-steps of a step, of all processes; each weighs the same, whatever it holds
    TapeOptions      tape{};
    LoraOptions      lora{};            // with a rank: adapters in place of the language model's parameters
    std::uint64_t    seed = 0;          // of what dropout drops
};

/// Whether a stage trains the parameter of this name (the path of visit). What of a tower does not reach its features (the last
/// block, the last norm, the pooling head) has no gradient and is never updated.
template <Backend B>
bool trained_in(Stage stage, const Prismatic<B>& m, std::string_view name) {
    constexpr std::string_view towers = "vision_backbone.";
    if (!in_trained_part(stage, name)) return false;
    if (!name.starts_with(towers)) return true;
    name.remove_prefix(towers.size());
    std::size_t i = 0;
    const auto  end = std::from_chars(name.data(), name.data() + name.size(), i).ptr;
    name.remove_prefix(static_cast<std::size_t>(end - name.data()) + 1);
    const std::string last = "blocks." + std::to_string(m.towers.at(i).config.n_layers - 1) + ".";
    return !name.starts_with("norm.") && !name.starts_with("attn_pool.") && !name.starts_with(last);
}
/// A language model by itself is trained whole.
template <Backend B>
bool trained_in(Stage, const LanguageModel<B>&, std::string_view) {
    return true;
}

/// What a step costs, before it is made.
struct TrainingCost {
    std::size_t   workspace_bytes = 0;  // scratch of a micro-step
    std::size_t   state_bytes = 0;      // trained parameters, gradients, both moments and adapted matrices, in f32
    std::uint64_t flops = 0;            // of a micro-step; a product of [m, k] and [k, n] counts 2 m n k
};

/// A Prismatic model, or a language model by itself, in training. The model has to stay where it is. `model` may be used for
/// inference between micro-steps; its trained parameters are f32 rows, which products with few rows take more slowly than the
/// panels of a loaded model. Frozen parameters stay as they were loaded, in any format.
template <TrainingBackend B, template <class> class Model = Prismatic>
class Trainer {
public:
    Trainer(B& be, Model<B>& model, Stage stage, TrainerOptions options = {}, Sharing<B> sharing = {})
        : be_(&be), model_(&model), stage_(stage), options_(options),
          optimizer_(be, layout(model, stage, options.lora), options.optimizer, std::move(sharing)), grads_(unbound_twin<B>(model)), tape_(options.tape),
          adapters_(be, adopted(), optimizer_.parameters(), optimizer_.gradients(), tape_, options.lora), ws_(be, 0), twin_(dry_twin(model)),
          twin_grads_(dry_twin(model)), twin_arena_(dry_, optimizer_.layout()), dry_tape_(options.tape),
          dry_adapters_(dry_, twin_, twin_arena_, twin_arena_, dry_tape_, options.lora) {
        optimizer_.gradients().bind(grads_);
        twin_arena_.bind(twin_grads_);
    }
    Trainer(const Trainer&) = delete;
    Trainer& operator=(const Trainer&) = delete;

    /// Adds the gradients of a batch, divided by the number of micro-steps of a step, and returns its mean loss. Allocates
    /// nothing once batches of these sizes have been seen. Throws ShapeError.
    double micro_step(const TrainingBatch<B>& batch) { return micro_step(batch, 1.0 / static_cast<double>(options_.accumulation)); }
    /// The same with a weight of the caller's.
    double micro_step(const TrainingBatch<B>& batch, double weight) {
        make_room(batch, true);
        // Processes take micro-steps in turn, so that these are those of one process.
        const auto& sharing = optimizer_.sharing();
        tape_.restart(detail::part_key(options_.seed, "micro-step", optimizer_.steps() * options_.accumulation + taken_ * sharing.n_ranks + sharing.rank));
        const double loss = training_pass(*be_, ws_, *model_, batch, plan_, tape_, static_cast<float>(weight), parts_of(stage_), &grads_);
        ++taken_;
        return loss;
    }
    /// In place of a micro-step whose batch is empty: those that follow keep their number, by which dropout knows them.
    void pass_over() { ++taken_; }
    /// Whether a step's micro-steps have been made.
    bool due() const { return taken_ * optimizer_.sharing().n_ranks >= options_.accumulation; }
    /// Clips, updates the parameters and clears the gradients.
    StepReport step() { return step(optimizer_.next_lr()); }
    /// The same at a rate of the caller's.
    StepReport step(double lr) {
        taken_ = 0;
        const StepReport report = optimizer_.step(*be_, lr);
        adapters_.merge(*be_);
        return report;
    }
    /// Parameters were set from outside, by a checkpoint.
    void restored() { adapters_.merge(*be_); }
    /// Forgets the gradients of micro-steps that no step has used: what Prismatic does at the start of an epoch.
    void drop_gradients() {
        taken_ = 0;
        optimizer_.gradients().clear(*be_);
    }

    /// The mean loss of a batch, and nothing else.
    double loss(const TrainingBatch<B>& batch) {
        make_room(batch, false);
        return training_pass(*be_, ws_, *model_, batch, plan_, tape_, 0.0f, parts_of(stage_), static_cast<Model<B>*>(nullptr));
    }

    /// Scratch that is taken now: the most that a batch so far has needed.
    std::size_t workspace_bytes() const { return ws_.capacity_bytes(); }
    /// What a micro-step with a batch of these shapes and labels costs.
    TrainingCost cost(const TrainingBatch<B>& batch) { return dry_cost(batch, true); }

    /// Parameters, gradients, moments and the step counter: what a checkpoint holds, and what processes exchange.
    Optimizer<B>&       optimizer() { return optimizer_; }
    const Optimizer<B>& optimizer() const { return optimizer_; }
    Stage               stage() const { return stage_; }
    const LowRankAdapters<B>& adapters() const { return adapters_; }
    const TrainerOptions& options() const { return options_; }
    Model<B>&           model() { return *model_; }

private:
    static ArenaLayout layout(const Model<B>& model, Stage stage, const LoraOptions& lora) {
        if (lora.rank && stage == Stage::align) throw ConfigError{"lora", "rank " + std::to_string(lora.rank), "no adapters in align: the language model is frozen"};
        const auto trained = [&](std::string_view name) { return trained_in(stage, model, name) && !(lora.rank && of_llm(model, name)); };
        return LowRankAdapters<B>::with_slots(arena_layout(model, trained), model, lora);
    }
    static bool of_llm(const Prismatic<B>&, std::string_view name) { return name.starts_with("llm_backbone."); }
    static bool of_llm(const LanguageModel<B>&, std::string_view) { return true; }
    Model<B>& adopted() {
        optimizer_.parameters().adopt(*be_, *model_);
        return *model_;
    }

    TrainingCost dry_cost(const TrainingBatch<B>& batch, bool with_backward) {
        dry_pixels_.clear();
        for (const auto& view : batch.pixels) dry_pixels_.push_back(dry_view(view));
        dry_tape_.restart();
        const Cost cost = dry_run([&](Dry& dry, Workspace<Dry>& ws) {
            training_pass(dry, ws, twin_, TrainingBatch<Dry>{batch.rows, dry_pixels_, dry_view(batch.features)}, dry_plan_, dry_tape_, 0.0f, parts_of(stage_),
                          with_backward ? &twin_grads_ : nullptr);
        });
        const std::size_t state = 2 * optimizer_.layout().size + optimizer_.m().size() + optimizer_.v().size();
        return {cost.workspace_bytes, state * sizeof(float) + adapters_.bytes(), cost.flops};
    }
    void make_room(const TrainingBatch<B>& batch, bool with_backward) {
        const std::size_t bytes = dry_cost(batch, with_backward).workspace_bytes;
        if (bytes <= ws_.capacity_bytes()) return;
        ws_ = Workspace<B>{*be_, 0};  // both would not have to fit
        ws_ = Workspace<B>{*be_, bytes};
    }

    B*                 be_;
    Model<B>*          model_;
    Stage              stage_;
    TrainerOptions     options_;
    Optimizer<B>       optimizer_;
    Model<B>           grads_;
    SequencePlan<B>    plan_;
    Tape<B>            tape_;
    LowRankAdapters<B> adapters_;
    Workspace<B>       ws_;
    std::size_t        taken_ = 0;

    // The same on the dry backend, which says how much room a batch takes.
    Dry                         dry_;
    Model<Dry>                  twin_, twin_grads_;
    Arena<Dry>                  twin_arena_;
    SequencePlan<Dry>           dry_plan_;
    Tape<Dry>                   dry_tape_;
    LowRankAdapters<Dry>        dry_adapters_;
    std::vector<PixelView<Dry>> dry_pixels_;
};

}  // namespace prism
