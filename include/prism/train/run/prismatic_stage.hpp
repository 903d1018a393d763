// PrismaticStage: a Prismatic model in a stage of training, as train_stage takes it.
//
//     prism::PrismaticStage stage{cpu, vlm, prism::Stage::finetune, options};
//     prism::train_stage(stage, examples, plan, folder);
#pragma once

#include "prism/io/file.hpp"
#include "prism/io/json.hpp"
#include "prism/io/safetensors.hpp"
#include "prism/io/torch_writer.hpp"
#include "prism/train/data/batch.hpp"
#include "prism/train/feature_cache.hpp"
#include "prism/train/run/train_run.hpp"
#include "prism/train/trainer.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <set>
#include <span>
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
    /// Alone, or as one of several ranks; with a cache for the features of pictures where the towers are frozen. Throws ConfigError
    /// where they are not.
    PrismaticStage(B& be, Prismatic<B>& model, Stage stage, const TrainerOptions& options, const Ranks& ranks = {}, const FeatureCacheOptions& cache = {})
        : model_(&model), trainer_(be, model, stage, options, sharing<B>(ranks)), rest_(be, arena_layout(model, [&](std::string_view name) {
              return in_trained_part(stage, name) && !trained_in(stage, model, name);
          })) {
        rest_.adopt(be, model);
        if (cache.bytes && parts_of(stage).towers) throw ConfigError{"feature_cache_bytes", std::to_string(cache.bytes), "0: the stage trains the towers"};
        if (cache.bytes) cache_.emplace(be, model, cache);
    }

    double micro_step(const Batch& batch, double weight) {
        rows_.clear(), pixels_.clear(), pictured_.clear();
        std::size_t picture = 0;
        for (std::size_t r = 0; r < batch.n_rows(); ++r) {
            rows_.push_back({batch.row_ids(r), batch.row_labels(r), {}});
            if (picture < batch.n_pictures() && batch.picture_rows[picture] == r) rows_.back().picture = picture++;
        }
        for (std::size_t t = 0; t < batch.pixels.size() && picture > 0; ++t) {
            const std::size_t size = model_->config.towers.at(t).vit.image_size;
            pixels_.push_back(PixelView<B>{batch.pixels[t].data(), {picture, 3, size, size}});
        }
        if (!cache_ || picture == 0) return trainer_.micro_step({.rows = rows_, .pixels = pixels_}, weight);
        for (const std::size_t r : batch.picture_rows) pictured_.push_back(batch.examples[r]);
        return trainer_.micro_step({.rows = rows_, .features = cache_->features(pictured_, pixels_)}, weight);
    }
    void pass_over() { trainer_.pass_over(); }
    /// Whether the picture of this example need not be read again. From any thread.
    bool knows_picture(std::size_t example) const { return cache_ && cache_->knows(example); }
    /// What a line of metrics says besides the loss: with a cache, pictures that have passed the towers so far, and that did not need
    /// to. Of this process, since it began.
    Json metrics() const {
        if (!cache_) return Json::object();
        return {{"Pictures Computed", cache_->counts().computed}, {"Pictures Remembered", cache_->counts().remembered}};
    }
    double step(double rate) { return trainer_.step(rate).grad_norm; }
    void   clear_gradients() { trainer_.drop_gradients(); }
    void   set_steps(std::uint64_t n) { trainer_.optimizer().set_steps(n), trainer_.restored(); }

    /// All of the parts that the stage trains, as a checkpoint of Prismatic has them: also what of a tower is never reached.
    /// With adapters, they alone stand for the language model.
    std::vector<NamedSpan> parameters() {
        std::vector<NamedSpan> all = named({&trainer_.optimizer().parameters(), &rest_});
        for (NamedSpan& adapter : adapters()) all.push_back(std::move(adapter));
        return all;
    }
    std::vector<NamedSpan> moments() {
        const auto span = [](const char* name, Vec<B> v) { return NamedSpan{name, {v.size()}, {v.data(), v.size()}}; };
        return {span("m", trainer_.optimizer().m()), span("v", trainer_.optimizer().v())};
    }

    /// What a stage with adapters leaves when it is finished; other stages leave no more than their checkpoints.
    ///     checkpoints/latest-checkpoint.pt                  an ordinary checkpoint, the adapters merged into the language model
    ///     adapter_model.safetensors, adapter_config.json    the adapters alone, as PEFT has them, for the model in `base`
    /// Throws LoadError when the disk fails. Source: huggingface/peft, utils/save_and_load.py, tuners/lora/config.py.
    void finish(B& be, const RunFolder& folder, const std::filesystem::path& base) {
        const LoraOptions& lora = trainer_.options().lora;
        if (!lora.rank) return;
        const Arena<B>& merged = trainer_.adapters().merged();
        const Arena<B>  frozen{be, arena_layout(*model_, [&](std::string_view name) { return name.starts_with(language_model) && !merged.layout().find(name); })};
        frozen.copy(be, *model_);
        write_torch(folder.latest(), {{"model", detail::model_dict(named({&trainer_.optimizer().parameters(), &rest_, &merged, &frozen}))}});

        std::vector<TensorData> tensors;
        std::set<std::string>   targets;
        for (const NamedSpan& adapter : adapters()) {
            const std::string name = adapter.name.substr(language_model.size());
            tensors.push_back({.name = "base_model.model." + name, .dtype = Dtype::f32, .shape = adapter.shape, .bytes = std::as_bytes(adapter.values)});
            const std::string module = name.substr(0, name.find(".lora_"));
            targets.insert(module.substr(module.rfind('.') + 1));
        }
        write_safetensors(folder.path() / "adapter_model.safetensors", tensors, {{"format", "pt"}});
        NewFile config{folder.path() / "adapter_config.json"};
        config.write(Json{{"peft_type", "LORA"}, {"task_type", "CAUSAL_LM"}, {"base_model_name_or_path", base.string()}, {"r", lora.rank}, {"lora_alpha", lora.alpha},
                          {"lora_dropout", lora.dropout}, {"target_modules", targets}, {"bias", "none"}, {"fan_in_fan_out", false}, {"inference_mode", true}}
                         .dump(2) + "\n");
        config.commit();
    }

    Trainer<B>& trainer() { return trainer_; }

private:
    static constexpr std::string_view language_model = "llm_backbone.llm.";

    static NamedSpan span_of(const Arena<B>& arena, const Slot& slot, std::string name) { return {std::move(name), slot.shape, {arena.values(slot).data(), slot.size}}; }
    /// The parameters of the model that lie in one of these arenas, under the names of files.
    std::vector<NamedSpan> named(std::initializer_list<const Arena<B>*> arenas) const {
        std::vector<NamedSpan> all;
        visit(*model_, [&](const std::string& path, const auto&) {
            for (const Arena<B>* arena : arenas)
                if (const Slot* slot = arena->layout().find(path)) all.push_back(span_of(*arena, *slot, file_name(path)));
        });
        return all;
    }
    std::vector<NamedSpan> adapters() const {
        std::vector<NamedSpan> all;
        const Arena<B>&        arena = trainer_.optimizer().parameters();
        for (const Slot& slot : arena.layout().slots)
            if (slot.name.find(".lora_") != slot.name.npos) all.push_back(span_of(arena, slot, slot.name));
        return all;
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
    std::optional<FeatureCache<B>> cache_;
    std::vector<std::size_t>     pictured_;  // examples of the batch that have a picture
    std::vector<TrainingRow>     rows_;
    std::vector<PixelView<B>>    pixels_;
};

}  // namespace prism
