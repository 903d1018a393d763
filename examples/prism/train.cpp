// train: the stages of a configuration, one after another, each from where it was left; by the processes of mpirun together.
#include "files.hpp"
#include "interrupt.hpp"
#include "models.hpp"
#include "progress.hpp"

#include "prism/train.hpp"
#include "prism/train/data/llava.hpp"
#include "prism/train/run/base_model.hpp"
#include "prism/train/run/prismatic_stage.hpp"
#include "prism/train/run/train_run.hpp"
#ifdef PRISM_WITH_MPI
#include "prism/train/mpi.hpp"
#endif

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace program {

namespace {

using namespace prism;

/// The checkpoint whose parts a stage starts from: the one that is named, the one of the stage before, or, for fine-tuning
/// after an alignment, that of the alignment run whose id differs in the stage alone.
std::optional<std::filesystem::path> first_checkpoint(const TrainConfig& config, std::size_t i, const std::filesystem::path& before) {
    if (i > 0) return before;
    if (config.pretrained_checkpoint) return config.pretrained_checkpoint;
    if (config.stages[0] == Stage::align || config.arch_specifier.starts_with("no-align")) return std::nullopt;
    const auto id = config.alignment_id();
    const auto aligned = config.run_root_dir / id.value_or("") / "checkpoints" / "latest-checkpoint.pt";
    if (!id || !std::filesystem::exists(aligned))
        throw ConfigError{"pretrained_checkpoint", "", "the checkpoint of an alignment, because '" + config.arch_specifier + "' begins with one; " +
                                                           (id ? aligned.string() + " is not there" : "the run_id does not name the stage, and so no alignment run")};
    return aligned;
}

/// What a progress line says of a stage, from any thread.
struct Watched {
    std::atomic<std::size_t> step{0};
    std::atomic<double>      loss{0};
    std::optional<Progress>  bar;  // last: it reads the others
};

/// The signal that ended it early, or 0.
int train(const Common& asked, const Train& args) {
#ifdef PRISM_WITH_MPI
    const Mpi    mpi;
    const Ranks& ranks = mpi.ranks();
#else
    const Ranks ranks;
#endif
    Common common = asked;
    common.quiet |= !ranks.first();  // one of them speaks
    const auto config = ranks.together([&] {
        if (common.weights != "as-stored") throw UsageError{"--weights " + common.weights + ": what is trained is f32, and the rest stays as it is stored"};
        return TrainConfig::open(args.config);
    });
    const auto            cpu_made = ranks.together([&] { return std::unique_ptr<Cpu>{new Cpu{open_backend<Cpu>(common)}}; });
    Cpu&                  cpu = *cpu_made;
    StageResult           result{.finished = true};
    std::size_t           steps = 0;
    std::uint64_t         skipped = 0;
    std::filesystem::path before;
    const Interrupt       interrupt{{SIGINT, SIGTERM}, true};  // behind the step that it is at; a second one ends the program at once
    for (std::size_t i = 0; i < config.stages.size() && result.finished; ++i) {
        const Stage stage = config.stages[i];
        const auto& settings = config.settings(stage);
        const auto  first = ranks.together([&] { return first_checkpoint(config, i, before); });
        const auto  folder = ranks.together([&] {
            return ranks.first() ? std::make_unique<RunFolder>(config.run_root_dir, config.id_of(stage), metrics_name(stage) + "/Step", config.keep_checkpoints) : nullptr;
        });
        auto        base = ranks.together([&] {
            auto opened = base_model(cpu, config);
            if (first) start_from(cpu, opened.model, *first);
            LowRankAdapters<Cpu>::with_slots({}, opened.model, config.lora);  // an unknown target is said before the stages without adapters
            return opened;
        });
        const auto  examples = ranks.together([&] {
            LlavaOptions options{.format = prompt_builder_for(config.llm_backbone_id).format(), .transforms = base.model.transforms(), .max_tokens = config.llm_max_length,
                                 .captions = stage == Stage::align, .bad = config.bad_examples};
            return LlavaExamples{config.data(stage)[0], config.data(stage)[1], *base.tokenizer, std::move(options)};
        });
        if (examples.file().n_skipped() > 0)
            note(common, std::to_string(examples.file().n_skipped()) + " examples are left out; the first: " + examples.file().skipped().front().what());

        // Phi drops values of its residual branches when it is trained, and no other family does.
        const bool phi = std::holds_alternative<PhiConfig>(base.model.config.llm);
        const auto trainer = ranks.together([&] {
            const TrainerOptions options{.optimizer = {.lr = settings.learning_rate, .weight_decay = settings.weight_decay,
                                                       .decay = config.decay_by_shape ? Decay::by_shape : Decay::none, .max_grad_norm = settings.max_grad_norm},
                                         .accumulation = settings.global_batch_size / settings.per_device_batch_size,
                                         .tape = {.replay = config.recompute, .dropout = phi ? 0.1f : 0.0f}, .lora = config.adapters(stage), .seed = config.seed};
            return std::make_unique<PrismaticStage<Cpu>>(cpu, base.model, stage, options, ranks, config.feature_cache(stage));
        });

        Watched          watched;
        const StageHooks hooks{
            .on_begin = [&](std::size_t step, std::size_t n_steps) {  // it is known now that the folder is this run's
                folder->describe(config.json_of(stage), config.json_of(stage));
                link_parts(folder->path(), config, first);
                if (step == n_steps) note(common, folder->path().string() + " is finished; another run needs another run_id");
                watched.bar.emplace(!common.quiet && step < n_steps, std::string(to_string(stage)), static_cast<double>(n_steps - step), 1, "steps",
                                    [&watched] { return static_cast<double>(watched.step.load()); },
                                    [&watched] {
                                        char text[32];
                                        std::snprintf(text, sizeof text, "loss %.4f", watched.loss.load());
                                        return std::string(text);
                                    });
            },
            .on_step = [&](const StageProgress& p) {
                watched.loss = p.smooth_loss, ++watched.step;
                return !Interrupt::asked();
            },
            .on_change = [&](const std::string& sentence) { note(common, sentence); }};
        Json identity = config.identity_of(stage);
        identity["compute"] = common.compute;
        const StagePlan plan{.stage = stage, .settings = settings, .seed = config.seed, .checkpoint_every = config.checkpoint_every,
                             .loader = {.threads = config.loader_threads, .ahead = config.batches_ahead, .bad = config.bad_examples}, .ranks = ranks,
                             .identity = std::move(identity),
                             .machine = {{"isa", to_string(cpu.isa())}}};
        result = train_stage(*trainer, examples, plan, folder.get(), hooks);
        watched.bar.reset();
        ranks.together([&] {
            if (folder && result.finished) trainer->finish(cpu, *folder, first_language_model(config, first));
        });
        steps += result.steps, before = ranks.of_first(folder ? folder->latest().string() : "");
        const std::uint64_t left_out = result.loader.skipped + examples.file().n_skipped();
        skipped += left_out;
        if (!folder) continue;
        if (!result.loader.first_skipped.empty()) note(common, "examples were left out while training; the first: " + result.loader.first_skipped);
        char text[160];
        std::snprintf(text, sizeof text, ": %zu steps, loss %.4f; waited %.1f s for data, in %llu of %llu batches; %llu examples left out", result.steps, result.loss,
                      result.loader.waited_s, static_cast<unsigned long long>(result.loader.waits), static_cast<unsigned long long>(result.loader.batches),
                      static_cast<unsigned long long>(left_out));
        if (!common.json) std::cout << folder->path().string() << text << '\n';
        if (!result.finished) note(common, "interrupted; the same command goes on from " + folder->latest().string());
    }
    if (common.json && ranks.first()) print({{"steps", steps}, {"loss", result.loss}, {"skipped", skipped}});
    return result.finished ? 0 : Interrupt::signal();
}

}  // namespace

void run(const Common& common, const Train& args) {
    try {
        if (const int signal = train(common, args)) std::raise(signal);  // whoever started it learns why it ended
    } catch (const RankError&) { std::exit(1); }  // the process that failed says why
}

}  // namespace program
