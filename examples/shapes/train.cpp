// train_shapes: a vision-language model of one's own, trained from nothing, packed and measured.
//
//     train_shapes --folder build/shapes                     // some hours on two cores
//     train_shapes --measure build/shapes/model.prism
//
// Towers, projector and decoder learn together, from conversations about scenes that are drawn as they are needed. A killed
// run goes on from its last checkpoint, with the same outcome.
#include "measure.hpp"
#include "model.hpp"
#include "source.hpp"

#include "prism/model/pack.hpp"
#include "prism/model/store_as.hpp"
#include "prism/prism.hpp"
#include "prism/train.hpp"
#include "prism/train/run/prismatic_stage.hpp"
#include "prism/train/run/train_run.hpp"

#include <CLI/CLI.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <string>

namespace {

using namespace prism;

struct Options {
    std::filesystem::path folder = "build/shapes";
    std::size_t           rows = shapes::n_train, epochs = 12, batch = 32, threads = 0, pictures = 2000;
    std::uint64_t         seed = 7;
    double                rate = 1e-3;
    std::string           measured;
};

void print_scores(const shapes::Measured& m) {
    std::printf("%-16s %8s %6s\n", "question", "right", "of");
    for (std::size_t t = 0; t < shapes::n_types; ++t)
        if (m.types[t].n) std::printf("%-16s %6.1f %% %6zu\n", std::string(shapes::type_names[t]).c_str(), 100 * m.types[t].share(), m.types[t].n);
    std::printf("%-16s %6.1f %% %6zu\n", "counts up to six", 100 * m.counts_to_six.share(), m.counts_to_six.n);
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

void train(Cpu& cpu, const Options& o) {
    auto                        model = shapes::fresh_model(cpu, o.seed);
    const Stage                 stage = Stage::full_finetune;
    const shapes::WorldExamples examples{{.seed = 0}, shapes::Split::train, o.rows, {.format = prompt_builder_for(shapes::prompt_style).format(), .transforms = model.model.transforms(), .max_tokens = 512}};
    const StagePlan             plan{.stage = stage,
                                     .settings = {.epochs = o.epochs, .global_batch_size = o.batch, .per_device_batch_size = o.batch, .learning_rate = o.rate, .weight_decay = 0.05},
                                     .seed = o.seed, .checkpoint_every = 500,
                                     .identity = {{"rows", o.rows}, {"epochs", o.epochs}, {"batch", o.batch}, {"rate", o.rate}, {"seed", o.seed}}};
    PrismaticStage              trainer{cpu, model.model, stage, {.optimizer = {.lr = o.rate, .beta2 = 0.95, .weight_decay = 0.05}, .tape = {.replay = false}}};
    RunFolder                   folder{o.folder, "shapes+x" + std::to_string(o.seed), metrics_name(stage) + "/Step", 2};
    folder.describe(plan.identity, plan.identity);
    const auto result = train_stage(trainer, examples, plan, folder, {.on_step = [](const StageProgress& p) {
        if (p.step % 10 == 0 || p.step == p.n_steps)
            std::fprintf(stderr, "\rstep %zu of %zu  loss %.4f  %.0f minutes left ", p.step, p.n_steps, p.smooth_loss, static_cast<double>(p.n_steps - p.step) * p.step_s / 60);
        return true;
    }});
    std::fprintf(stderr, "\n%zu steps, loss %.4f, waited %.1f s for data\n", result.steps, result.loss, result.loader.waited_s);
    store_as(cpu, model.model, Dtype::bf16);
    const auto packed = o.folder / "model.prism";
    std::printf("%s: %llu bytes\n", packed.string().c_str(), static_cast<unsigned long long>(pack(packed, model)));
    measure(cpu, from_pretrained(cpu, packed), o);
}

}  // namespace

int main(int argc, char** argv) try {
    Options  o;
    CLI::App app{"Trains the small model of the shapes world, or measures one"};
    app.add_option("--folder", o.folder, "Where the run and model.prism go")->capture_default_str();
    app.add_option("--rows", o.rows, "Conversations of an epoch")->capture_default_str();
    app.add_option("--epochs", o.epochs, "How often each is read")->capture_default_str();
    app.add_option("--batch", o.batch, "Conversations of a step")->capture_default_str();
    app.add_option("--rate", o.rate, "Highest learning rate")->capture_default_str();
    app.add_option("--seed", o.seed, "Of parameters and order")->capture_default_str();
    app.add_option("--threads", o.threads, "How many compute; default: physical cores");
    app.add_option("--pictures", o.pictures, "Held-out pictures to measure on")->capture_default_str();
    app.add_option("--measure", o.measured, "Only measure this packed model");
    CLI11_PARSE(app, argc, argv);
    Cpu cpu{{.threads = o.threads}};
    if (o.measured.empty()) train(cpu, o);
    else measure(cpu, from_pretrained(cpu, o.measured), o);
    return 0;
} catch (const Error& e) {
    std::cerr << "train_shapes: " << e.what() << '\n';
    return 1;
}
