// A part of a long training: steps that go on where they were killed, with the same outcome.
//
//     run_part({"build/shapes/dino.state", "supervised tower", 1500}, identity, trainer, [&](std::size_t k) { return trainer.step(...); });
#pragma once

#include "distilled.hpp"
#include "supervised.hpp"
#include "text.hpp"
#include "world.hpp"

#include "prism/io/bundle.hpp"
#include "prism/train/run/train_run.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

namespace prism::shapes {

struct Part {
    std::filesystem::path file;  // where its state is kept
    std::string           name;
    std::size_t           steps = 0, save_every = 200;
};

/// All that decides what a world shows and asks. (A member that is added has to be named here, or this does not compile.)
inline Json settings_of(const World& world) {
    const auto& [seed, questions, text_percent, plain_first, plain_later, mixture, captions, drill_percent, n_drills, drill_mixture, most_objects] = world;
    const auto& [spatial_percent, count_percent, label_percent] = captions;
    return {{"seed", seed}, {"questions", questions}, {"text_percent", text_percent}, {"plain_first", plain_first}, {"plain_later", plain_later}, {"mixture", mixture.weights},
            {"captions", {spatial_percent, count_percent, label_percent}}, {"drill_percent", drill_percent}, {"n_drills", n_drills}, {"drill_mixture", drill_mixture.weights}, {"alike_forms", drill_mixture.alike_forms}, {"most_objects", most_objects}};
}
inline Json settings_of(const TowerOptions& options) {
    const auto& [batch, steps, rate, weight_decay, seed, alike] = options;
    return {{"batch", batch}, {"steps", steps}, {"rate", rate}, {"weight_decay", weight_decay}, {"seed", seed}, {"alike", alike}};
}
inline Json settings_of(const DistilledOptions& options) {
    const auto& [batch, steps, rate, weight_decay, seed, d_hidden, d_common, n_prototypes, asked, holes, shift, brightness, student_temperature, teacher_temperature, momentum] = options;
    return {{"batch", batch}, {"steps", steps}, {"rate", rate}, {"weight_decay", weight_decay}, {"seed", seed}, {"widths", {d_hidden, d_common, n_prototypes}}, {"view", {asked, holes, shift, brightness}},
            {"temperatures", {student_temperature, teacher_temperature}}, {"momentum", momentum}};
}
inline Json settings_of(const TextOptions& options) {
    const auto& [batch, steps, rate, weight_decay, seed] = options;
    return {{"batch", batch}, {"steps", steps}, {"rate", rate}, {"weight_decay", weight_decay}, {"seed", seed}};
}
inline Json settings_of(const StageSettings& settings) {
    const auto& [epochs, max_steps, global_batch_size, per_device_batch_size, learning_rate, weight_decay, max_grad_norm, warmup_ratio, cosine] = settings;
    return {{"epochs", epochs}, {"max_steps", max_steps ? Json(*max_steps) : Json()}, {"global_batch_size", global_batch_size}, {"per_device_batch_size", per_device_batch_size},
            {"learning_rate", learning_rate}, {"weight_decay", weight_decay}, {"max_grad_norm", max_grad_norm}, {"warmup_ratio", warmup_ratio}, {"cosine", cosine}};
}

/// What makes each part of a recipe what it is: its own settings, and those of all parts before, on whose outcome it builds. A part
/// that is edited, and those behind it, are then not taken for what an earlier recipe has left in the folder.
class Recipe {
public:
    /// `settings` of the whole, such as a seed.
    explicit Recipe(const Json& settings) { follow(settings); }

    /// The identity of the next part.
    Json part(Json settings) {
        settings["after"] = so_far_;
        follow(settings);
        return settings;
    }

private:
    void follow(const Json& settings) {
        Hash hash;
        hash.add(settings.dump());
        so_far_ = hash.hex();
    }

    std::string so_far_;
};

/// Steps `trainer` from where `part.file` stands to the end. `step(k)` makes step k, of 0 ... steps - 1, and returns its loss;
/// `said(loss)` is what a line of progress says of it. Throws ConfigError where the file is of another run, TrainingError for
/// a loss that is no number.
template <class Trainer, class Step>
void run_part(const Part& part, const Json& identity, Trainer& trainer, Step&& step) {
    std::vector<NamedSpan>   state = trainer.state();
    std::vector<BundleEntry> entries;
    for (const NamedSpan& s : state) entries.push_back({.name = s.name, .about = Json::object(), .bytes = std::as_bytes(s.values)});
    std::size_t k = 0;
    if (std::filesystem::exists(part.file)) {
        const Bundle saved = read_bundle(MappedFile::open(part.file));
        prism::detail::expect_same_run(saved.contents.at("identity"), identity, part.file.string(), "other settings need another --folder");
        k = saved.contents.at("step").get<std::size_t>();
        for (const NamedSpan& s : state) {
            const auto at = std::ranges::find(saved.entries, s.name, &BundleEntry::name);
            if (at == saved.entries.end() || at->bytes.size() != s.values.size_bytes()) throw FormatError{part.file.string(), 0, "the state has no '" + s.name + "' of this size"};
            std::memcpy(s.values.data(), at->bytes.data(), at->bytes.size());
        }
        trainer.set_steps(k);
    }
    const auto        begun = std::chrono::steady_clock::now();
    const std::size_t first = k;
    for (double smooth = 0; k < part.steps;) {
        const double loss = step(k);
        if (!std::isfinite(loss)) throw TrainingError{part.name + ": the loss of step " + std::to_string(k) + " is no number", k, {}, part.file.string()};
        smooth = k == first ? loss : 0.98 * smooth + 0.02 * loss;
        ++k;
        if (k % 10 == 0 || k == part.steps) {
            const double each = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count() / static_cast<double>(k - first);
            std::fprintf(stderr, "\r%s: step %zu of %zu, loss %.4f, %.1f minutes left ", part.name.c_str(), k, part.steps, smooth, each * static_cast<double>(part.steps - k) / 60);
        }
        if (k % part.save_every == 0 || k == part.steps) write_bundle(part.file, Json{{"step", k}, {"identity", identity}}, entries);
    }
    if (first < part.steps) std::fputc('\n', stderr);
}

}  // namespace prism::shapes
