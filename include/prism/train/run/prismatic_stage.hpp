// PrismaticStage: a Prismatic model in a stage of training, as train_stage takes it.
//
//     prism::PrismaticStage stage{cpu, vlm, prism::Stage::finetune, options};
//     prism::train_stage(stage, examples, plan, folder);
#pragma once

#include "prism/train/data/batch.hpp"
#include "prism/train/run/train_run.hpp"
#include "prism/train/trainer.hpp"

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

/// For backends whose memory the host reads. The model has to stay where it is.
template <TrainingBackend B>
    requires std::same_as<typename B::space, host>
class PrismaticStage {
public:
    PrismaticStage(B& be, Prismatic<B>& model, Stage stage, const TrainerOptions& options, Sharing<B> sharing = {})
        : model_(&model), trainer_(be, model, stage, options, std::move(sharing)), rest_(be, arena_layout(model, [&](std::string_view name) {
              return saved_in(stage, name) && !trained_in(stage, model, name);
          })) {
        rest_.adopt(be, model);
    }

    double micro_step(const Batch& batch, double weight) {
        rows_.clear(), pixels_.clear();
        std::size_t picture = 0;
        for (std::size_t r = 0; r < batch.n_rows(); ++r) {
            rows_.push_back({batch.row_ids(r), batch.row_labels(r), {}});
            if (picture < batch.n_pictures() && batch.picture_rows[picture] == r) rows_.back().picture = picture++;
        }
        for (std::size_t t = 0; t < batch.pixels.size() && picture > 0; ++t) {
            const std::size_t size = model_->config.towers.at(t).vit.image_size;
            pixels_.push_back(PixelView<B>{batch.pixels[t].data(), {picture, 3, size, size}});
        }
        return trainer_.micro_step({.rows = rows_, .pixels = pixels_}, weight);
    }
    double step(double rate) { return trainer_.step(rate).grad_norm; }
    void   clear_gradients() { trainer_.drop_gradients(); }
    void   set_steps(std::uint64_t n) { trainer_.optimizer().set_steps(n); }

    /// All of the parts that the stage trains, as a checkpoint of Prismatic has them: also what of a tower is never reached.
    std::vector<NamedSpan> parameters() {
        std::vector<NamedSpan> all;
        visit(*model_, [&](const std::string& path, const auto&) {
            for (const Arena<B>* arena : std::array<const Arena<B>*, 2>{&trainer_.optimizer().parameters(), &rest_})
                if (const Slot* slot = arena->layout().find(path)) all.push_back({file_name(path), slot->shape, {arena->values(*slot).data(), slot->size}});
        });
        return all;
    }
    std::vector<NamedSpan> moments() {
        const auto span = [](const char* name, Vec<B> v) { return NamedSpan{name, {v.size()}, {v.data(), v.size()}}; };
        return {span("m", trainer_.optimizer().m()), span("v", trainer_.optimizer().v())};
    }

    Trainer<B>& trainer() { return trainer_; }

private:
    static bool saved_in(Stage stage, std::string_view name) {
        const TrainedParts parts = parts_of(stage);
        return name.starts_with("projector.") ? parts.projector : name.starts_with("vision_backbone.") ? parts.towers : parts.llm;
    }
    /// "vision_backbone.1.norm.bias" of the model is "vision_backbone.siglip_featurizer.norm.bias" in a file.
    std::string file_name(const std::string& path) const {
        constexpr std::string_view towers = "vision_backbone.";
        if (!path.starts_with(towers)) return path;
        const std::size_t dot = path.find('.', towers.size());
        const auto&       configs = model_->config.towers;
        const std::size_t i = std::stoul(path.substr(towers.size(), dot - towers.size()));
        return std::string(towers) + (configs.size() > 1 ? configs.at(i).key + "_" : "") + "featurizer" + path.substr(dot);
    }

    Prismatic<B>*                model_;
    Trainer<B>                   trainer_;
    Arena<B>                     rest_;  // what a checkpoint has besides what is trained
    std::vector<TrainingRow>     rows_;
    std::vector<PixelView<B>>    pixels_;
};

}  // namespace prism
