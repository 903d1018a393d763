// train_shapes: a vision-language model of one's own, trained from nothing, packed and measured.
//
//     train_shapes --folder build/shapes                     // hours on two cores
//     train_shapes --measure build/shapes/model.prism
//     train_shapes --distil --folder build/distilled          // no part of it: a tower that teaches itself, in minutes
//
// Its parts follow each other: towers, the language, questions about properties with the towers as they are, then all
// questions with everything in training; at last a tower that counts, and a deeper decoder, which compares. A killed run goes
// on where it was, with the same outcome.
#include "contrastive_trainer.hpp"
#include "distilled.hpp"
#include "measure.hpp"
#include "model.hpp"
#include "naming.hpp"
#include "part.hpp"
#include "probe.hpp"
#include "source.hpp"
#include "supervised.hpp"
#include "text.hpp"

#include "prism/model/pack.hpp"
#include "prism/model/store_as.hpp"
#include "prism/prism.hpp"
#include "prism/train.hpp"
#include "prism/train/run/prismatic_stage.hpp"
#include "prism/train/run/train_run.hpp"

#include <CLI/CLI.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace prism;
using shapes::Scene;
using shapes::Split;
using shapes::World;

struct Options {
    std::filesystem::path folder = "build/shapes";
    double                length = 1;  // of every part, of what the recipe says
    std::size_t           threads = 0, pictures = 2000;
    std::uint64_t         seed = 7;
    std::string           measured;
    shapes::Recipe        recipe{Json::object()};

    std::size_t steps(std::size_t n) const { return std::max<std::size_t>(1, static_cast<std::size_t>(std::lround(length * static_cast<double>(n)))); }
};

void print_scores(const shapes::Measured& m) {
    std::printf("%-16s %8s %8s %6s\n", "question", "right", "floor", "of");
    for (std::size_t t = 0; t < shapes::n_types; ++t)
        if (m.types[t].n) std::printf("%-16s %6.1f %% %6.1f %% %6zu\n", std::string(shapes::type_names[t]).c_str(), 100 * m.types[t].share(), 100 * m.types[t].floor, m.types[t].n);
    std::printf("%-16s %6.1f %% %15zu\n", "counts up to six", 100 * m.counts_to_six.share(), m.counts_to_six.n);
    std::printf("without the picture, the most frequent answer of each kind: %.1f %%\n", 100 * m.floor);
    std::printf("answers that another picture changes: %.1f %%, a grey one: %.1f %% of %zu\n", 100.0 * static_cast<double>(m.other_picture) / static_cast<double>(m.asked),
                100.0 * static_cast<double>(m.blank) / static_cast<double>(m.asked), m.asked);
}

template <class P>
void measure(Cpu& cpu, const P& model, const Options& o) {
    print_scores(shapes::measure(cpu, model.model, chat_parts(model, 512), {.seed = 0}, {.pictures = o.pictures, .on_picture = [&](std::size_t n) {
                                     if (n % 100 == 0) std::fprintf(stderr, "\rmeasured %zu of %zu pictures", n, o.pictures), n == o.pictures && std::fputc('\n', stderr);
                                 }}));
}

StageHooks progress(std::string name) {
    return {.on_step = [name = std::move(name)](const StageProgress& s) {
        if (s.step % 10 == 0 || s.step == s.n_steps)
            std::fprintf(stderr, "\r%s: step %zu of %zu, loss %.4f, %.1f minutes left ", name.c_str(), s.step, s.n_steps, s.smooth_loss, static_cast<double>(s.n_steps - s.step) * s.step_s / 60);
        if (s.step == s.n_steps) std::fputc('\n', stderr);
        return true;
    }};
}

/// What a part has to show before another builds on it. Shortened runs only say so.
void expect(const Options& o, const char* what, double found, double least) {
    std::printf("  %s: %s %.1f %%, at least %.1f %% is asked for\n", found >= least ? "accepted" : "not accepted", what, 100 * found, 100 * least);
    std::fflush(stdout);
    if (found < least && o.length >= 1) throw Error(std::string(what) + " is less than what the next part needs; see above");
}

/// What can be read off a tower's features by a linear map.
shapes::ProbeReport print_probes(Cpu& cpu, const Prismatic<Cpu>& vlm, std::size_t tower) {
    const VitConfig&        vit = vlm.config.towers[tower].vit;
    shapes::PictureFeatures features{cpu, vlm, tower};
    const auto              r = shapes::probe(0, {.rows = vit.grid(), .columns = vit.grid(), .d = vit.d_model, .n_train = 600, .n_test = 300}, features);
    std::printf("  linear probes: colour %.1f %%, shape %.1f %%, presence %.1f %%, number %.1f %%, centre %.1f px\n", 100 * r.color, 100 * r.shape, 100 * r.presence, 100 * r.count, r.center_px);
    return r;
}

/// Looks and places, patch by patch; or, of a tower that knows them, also how many objects are alike. `seen`: steps whose pictures
/// another part has shown.
void train_supervised(Cpu& cpu, Prismatic<Cpu>& vlm, std::size_t tower, const std::string& part, const shapes::TowerOptions& options, Options& o, std::size_t seen = 0) {
    const World               world{.seed = 0};
    shapes::SupervisedTrainer trainer{cpu, vlm.config.towers[tower], options, options.alike ? &vlm.towers[tower] : nullptr};
    run_part({o.folder / (part + ".state"), part + " tower", options.steps}, o.recipe.part({{"part", part}, {"options", settings_of(options)}, {"world", settings_of(world)}, {"seen", seen}}), trainer,
             [&](std::size_t k) { return trainer.step([&](std::size_t i) { return world.scene(Split::train, (seen + k) * options.batch + i); }); });
    trainer.look([&](std::size_t i) { return world.scene(Split::validation, i); });
    std::printf("%s tower: right of held-out patches:", part.c_str());
    for (std::size_t k = 0; k < trainer.right().size(); ++k) std::printf("%s %s %.1f %%", k ? "," : "", std::string(shapes::patch_class_names[k]).c_str(), 100 * trainer.right()[k]);
    std::puts("");
    vlm.towers[tower] = std::move(trainer.tower());
    const auto probes = print_probes(cpu, vlm, tower);
    expect(o, "colour of objects", probes.color, 0.95), expect(o, "shape of objects", probes.shape, 0.95);
    if (options.alike) expect(o, "number of objects of one color, of held-out patches,", trainer.right()[shapes::alike_class(shapes::has_color)], 0.85);
}

/// What people say of pictures, on top of what the other tower knows.
void train_contrastive(Cpu& cpu, Prismatic<Cpu>& vlm, std::size_t tower, Options& o) {
    constexpr std::size_t       batch = 128;
    constexpr double            rate = 5e-4;
    const std::size_t           steps = o.steps(250);
    const World                 world{.seed = 0, .captions = {.spatial_percent = 50}};
    const shapes::WorldExamples examples{world, Split::train, steps * batch, {.format = prompt_builder_for(shapes::prompt_style).format(), .transforms = {vlm.config.towers[tower].transform}, .captions = true}};
    const StageSettings         settings{.global_batch_size = batch, .per_device_batch_size = batch, .learning_rate = rate};
    const StagePlan             plan{.stage = Stage::align, .settings = settings, .seed = o.seed, .checkpoint_every = 100, .loader = {.threads = 1},
                                     .identity = o.recipe.part({{"part", "captions"}, {"steps", steps}, {"settings", shapes::settings_of(settings)}, {"world", settings_of(world)}})};
    shapes::ContrastiveTrainer  trainer{cpu, vlm.towers[tower], {.steps = steps, .rate = rate, .seed = o.seed}};
    RunFolder                   folder{o.folder, "captions", metrics_name(plan.stage) + "/Step", 2};
    const auto                  result = train_stage(trainer, examples, plan, folder, progress("captions"));

    constexpr std::size_t       n = 256;
    const double                found = trainer.retrieval(vlm.config.towers[tower].transform, n, [&](std::size_t i) { return world.caption_row(Split::validation, i); });
    std::vector<Scene>          held_out;
    for (std::size_t i = 0; i < n; ++i) held_out.push_back(world.scene(Split::validation, i));
    std::printf("tower of captions: loss %.3f, %.1f %% of %zu held-out pictures find their caption; who knew everything would find %.1f %%\n", result.loss, 100 * found, n,
                100 * shapes::best_retrieval(held_out, world.captions));
    const auto probes = print_probes(cpu, vlm, tower);
    expect(o, "captions found", found, 0.1), expect(o, "shape of objects", probes.shape, 0.9);
}

void train_language(Cpu& cpu, LanguageModel<Cpu>& llm, Options& o) {
    const shapes::TextOptions options{.steps = o.steps(300)};
    shapes::TextTrainer       trainer{cpu, llm, options};
    run_part({o.folder / "language.state", "language", options.steps}, o.recipe.part({{"part", "language"}, {"options", settings_of(options)}}), trainer,
             [&](std::size_t k) { return trainer.step(k); });
    const double perplexity = std::exp(trainer.held_out());
    std::printf("language: perplexity %.3f of documents that were not read\n", perplexity);
    expect(o, "probability of a word of them", 1 / perplexity, 0.33);
}

/// The projector names what is in each patch.
void train_naming(Cpu& cpu, Prismatic<Cpu>& vlm, Options& o) {
    const shapes::TowerOptions options{.batch = 16, .steps = o.steps(1200), .rate = 1e-3, .seed = o.seed};
    const World                world{.seed = 0};
    shapes::NamingTrainer      trainer{cpu, vlm, options};
    run_part({o.folder / "naming.state", "naming", options.steps}, o.recipe.part({{"part", "naming"}, {"options", settings_of(options)}, {"world", settings_of(world)}}), trainer,
             [&](std::size_t k) { return trainer.step([&](std::size_t i) { return world.scene(Split::train, k * options.batch + i); }); });
}

struct Lesson {
    const char*   name;
    Stage         stage;
    World         world;
    std::size_t   steps;
    double        rate;
    bool          cosine = false;  // to 0 at the end; otherwise the rate stays
    double        least = 0;       // of questions about colour that have to be right afterwards
};

void train_answers(Cpu& cpu, Pretrained<Cpu>& p, const Lesson& lesson, Options& o) {
    constexpr std::size_t       batch = 16;
    const std::size_t           steps = o.steps(lesson.steps);
    const shapes::WorldExamples examples{lesson.world, Split::train, steps * batch, {.format = prompt_builder_for(shapes::prompt_style).format(), .transforms = p.model.transforms(), .max_tokens = 512}};
    const StageSettings         settings{.global_batch_size = batch, .per_device_batch_size = batch, .learning_rate = lesson.rate, .weight_decay = 0.05, .cosine = lesson.cosine};
    const StagePlan             plan{.stage = lesson.stage, .settings = settings, .seed = o.seed, .checkpoint_every = 200, .loader = {.threads = 1},
                                     .identity = o.recipe.part({{"part", lesson.name}, {"stage", to_string(lesson.stage)}, {"steps", steps}, {"settings", shapes::settings_of(settings)}, {"world", settings_of(lesson.world)}})};
    PrismaticStage              trainer{cpu, p.model, lesson.stage, {.optimizer = {.lr = lesson.rate, .beta2 = 0.95, .weight_decay = 0.05}, .tape = {.replay = false}}};
    RunFolder                   folder{o.folder, lesson.name, metrics_name(lesson.stage) + "/Step", 2};
    folder.describe(plan.identity, plan.identity);
    const auto result = train_stage(trainer, examples, plan, folder, progress(lesson.name));
    std::printf("%s: %zu steps, loss %.4f; of 200 held-out pictures, asked without instructions:\n", lesson.name, result.steps, result.loss);
    World asked = lesson.world;
    asked.questions = 8, asked.drill_percent = 0;
    const auto scores = shapes::measure(cpu, p.model, chat_parts(p, 512), asked, {.pictures = 200, .plainly = true});
    print_scores(scores);
    expect(o, "colours", scores.right(shapes::Type::color), lesson.least);
    if (scores.boxes.n && lesson.cosine) expect(o, "boxes that can be read", scores.boxes.share(), 0.9);
}

void train(Cpu& cpu, Options& o) {
    std::filesystem::create_directories(o.folder);
    o.recipe = shapes::Recipe{{{"seed", o.seed}, {"compute", cpu.compute() == Compute::fast ? "fast" : "exact"}}};
    auto model = shapes::fresh_model(cpu, o.seed);
    train_supervised(cpu, model.model, 0, "supervised", {.steps = o.steps(3000), .seed = o.seed}, o);
    shapes::copy_parameters(cpu, model.model.towers[0], model.model.towers[1]);
    train_contrastive(cpu, model.model, 1, o);
    train_language(cpu, model.model.llm, o);
    std::vector<Image> some;
    for (std::size_t i = 0; i < 64; ++i) some.push_back(shapes::draw(World{.seed = 0}.scene(Split::train, i)));
    shapes::centre_features(cpu, model.model, some);
    train_naming(cpu, model.model, o);
    // Weights of: exists, color, shape, size, texture, count, related count, relation, compare, two hop, statement, three kinds
    // of boxes, two tallies, diagram, read, answerable, caption.
    const shapes::Mixture looks{{20, 25, 20, 10, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}};
    const shapes::Mixture short_answers{{20, 20, 15, 6, 5, 14, 0, 14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}};
    const shapes::Mixture most{{18, 20, 12, 6, 5, 14, 0, 14, 0, 0, 0, 10, 0, 0, 0, 0, 4, 6, 2, 2}};
    const shapes::Mixture everything{{14, 20, 14, 6, 5, 26, 4, 24, 2, 6, 6, 16, 8, 8, 4, 2, 4, 6, 4, 6}};
    const auto lesson = [](std::uint32_t drill_percent, std::size_t questions, const shapes::Mixture& mixture, std::size_t most_objects, std::uint32_t text_percent = 0) {
        return World{.seed = 0, .questions = questions, .text_percent = text_percent, .plain_first = 100, .plain_later = 100, .mixture = mixture, .drill_percent = drill_percent, .most_objects = most_objects};
    };
    train_answers(cpu, model, {"one", Stage::finetune, lesson(85, 8, looks, 1), 300, 8e-4, false, 0.7}, o);
    train_answers(cpu, model, {"few", Stage::finetune, lesson(85, 8, short_answers, 3), 1000, 8e-4, false, 0.9}, o);
    train_answers(cpu, model, {"many", Stage::finetune, lesson(80, 8, most, 15), 2500, 8e-4, false, 0.95}, o);
    World last = lesson(50, 8, everything, 15, 2);
    last.plain_first = 30, last.plain_later = 60;
    train_answers(cpu, model, {"all", Stage::full_finetune, last, 4300, 6e-4, true, 0.95}, o);

    train_supervised(cpu, model.model, 0, "counting", {.steps = o.steps(2600), .rate = 1.2e-3, .seed = o.seed, .alike = true}, o);
    model = shapes::deeper(cpu, std::move(model), {.decoder = {1, 3}});
    last.mixture = shapes::Mixture{{14, 20, 14, 6, 5, 40, 8, 40, 6, 8, 10, 12, 10, 8, 8, 4, 4, 8, 4, 4}};
    last.drill_percent = 60, last.drill_mixture = {.weights = {18, 4, 8, 34, 8, 10, 12, 10, 10, 6, 16, 34}, .alike_forms = {0, 0, 0, 1, 0, 1}};
    train_answers(cpu, model, {"deeper", Stage::finetune, last, 2000, 6e-4, true, 0.95}, o);

    // To compare is learnt in few objects first, while the tower learns to count better.
    model = shapes::deeper(cpu, std::move(model), {.decoder = {6}});
    World comparing = last;
    comparing.drill_percent = 88, comparing.drill_mixture = {.weights = {12, 2, 4, 10, 4, 2, 10, 3, 2, 2, 2, 70}, .alike_forms = {1, 3, 3, 3, 3, 3}};
    comparing.most_objects = 5;
    train_answers(cpu, model, {"comparing", Stage::finetune, comparing, 360, 8e-4, false, 0.95}, o);
    comparing.most_objects = 7, comparing.drill_mixture.alike_forms = {1, 2, 2, 3, 3, 4};
    train_answers(cpu, model, {"comparing-more", Stage::finetune, comparing, 140, 8e-4, false, 0.95}, o);
    model = shapes::deeper(cpu, std::move(model), {.first_tower = {4, 4}});
    train_supervised(cpu, model.model, 0, "counting-more", {.steps = o.steps(2400), .rate = 1e-3, .seed = o.seed, .alike = true}, o, o.steps(2600));
    last.mixture = shapes::Mixture{{14, 20, 14, 6, 5, 44, 8, 44, 6, 8, 12, 12, 10, 8, 8, 4, 4, 12, 4, 4}};
    last.drill_mixture = {.weights = {16, 4, 8, 34, 8, 8, 14, 10, 10, 10, 10, 56}};
    train_answers(cpu, model, {"everything", Stage::finetune, last, 2300, 6e-4, true, 0.95}, o);
    last.mixture = shapes::Mixture{{12, 16, 12, 5, 5, 70, 8, 40, 6, 8, 12, 10, 8, 6, 10, 4, 3, 12, 4, 3}};
    last.drill_percent = 65, last.drill_mixture.weights = {14, 4, 8, 70, 8, 6, 12, 8, 8, 8, 6, 44};
    train_answers(cpu, model, {"counts", Stage::finetune, last, 1100, 5e-4, true, 0.95}, o);
    store_as(cpu, model.model, Dtype::q8);
    const auto packed = o.folder / "model.prism";
    std::printf("%s: %llu bytes\n", packed.string().c_str(), static_cast<unsigned long long>(pack(packed, model)));
    measure(cpu, from_pretrained(cpu, packed), o);
}

/// A small tower that is told nothing, beside the random numbers that it began with.
void distil(Cpu& cpu, Options& o) {
    std::filesystem::create_directories(o.folder);
    const shapes::DistilledOptions options{.steps = o.steps(3000), .seed = o.seed};
    const World                    world{.seed = 0};
    Prismatic<Cpu>                 vlm{shapes::composition({.image_size = 48, .tower_width = 96, .tower_layers = 5, .tower_heads = 3})};
    shapes::DistilledTrainer       trainer{cpu, vlm.config.towers[0], options};
    shapes::share_parameters(trainer.teacher(), vlm.towers[0]);
    std::puts("untrained:");
    print_probes(cpu, vlm, 0);
    run_part({o.folder / "distilled.state", "distilled tower", options.steps}, o.recipe.part({{"part", "distilled"}, {"options", settings_of(options)}, {"world", settings_of(world)}}), trainer,
             [&](std::size_t k) { return trainer.step([&](std::size_t i) { return world.scene(Split::train, k * options.batch + i); }); });
    std::puts("distilled:");
    print_probes(cpu, vlm, 0);
}

}  // namespace

int main(int argc, char** argv) try {
    Options  o;
    CLI::App app{"Trains the small model of the shapes world, or measures one"};
    app.add_option("--folder", o.folder, "Where the run and model.prism go")->capture_default_str()->take_last();
    app.add_option("--length", o.length, "How long every part takes, as a share of what is written here")->capture_default_str()->check(CLI::PositiveNumber);
    app.add_option("--seed", o.seed, "Of parameters and order")->capture_default_str();
    app.add_option("--threads", o.threads, "How many compute; default: physical cores");
    app.add_option("--pictures", o.pictures, "Held-out pictures to measure on")->capture_default_str();
    app.add_option("--measure", o.measured, "Only measure this packed model");
    bool distilled = false;
    app.add_flag("--distil", distilled, "Train a tower that teaches itself, and nothing else");
    CLI11_PARSE(app, argc, argv);
    Cpu cpu{{.threads = o.threads, .compute = o.measured.empty() && !distilled ? Compute::fast : Compute::exact}};
    if (distilled) distil(cpu, o);
    else if (o.measured.empty()) train(cpu, o);
    else measure(cpu, from_pretrained(cpu, o.measured), o);
    return 0;
} catch (const std::exception& e) {
    std::cerr << "train_shapes: " << e.what() << '\n';
    return 1;
}
