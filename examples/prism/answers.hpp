// ask, chat, score, act: the commands that answer, on any backend.
#pragma once

#include "files.hpp"
#include "interrupt.hpp"
#include "models.hpp"
#include "options.hpp"
#include "progress.hpp"

#include "prism/generate/ask_batch.hpp"
#include "prism/generate/policy.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <deque>
#include <functional>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <unistd.h>

namespace program {

using namespace prism;

/// A bar for the work until the first token: encoding pictures and reading prompts, counted in operations.
class Reading {
public:
    template <Backend B>
    Reading(const Common& common, const B& be, const std::type_identity_t<Vlm<B>>* vlm, const LanguageModel<B>& llm, std::size_t n_pictures, std::size_t n_tokens) {
        double flops = static_cast<double>(reading_cost(llm, std::max<std::size_t>(1, n_tokens)).flops);
        if (vlm && n_pictures) {
            std::vector<PixelView<Dry>> pixels;
            for (const auto& t : vlm->model.config.towers) pixels.push_back({nullptr, {1, 3, t.vit.image_size, t.vit.image_size}});
            flops += static_cast<double>(n_pictures) * static_cast<double>(seeing_cost(vlm->model, std::span<const PixelView<Dry>>(pixels)).flops);
        }
        bar_.emplace(!common.quiet, "reading", flops, 1e9, "GFLOP", operations_of(be));
    }
    void end() { bar_.reset(); }

private:
    std::optional<Progress> bar_;
};

inline Json json_of(const Answer& a, double load_s, double open_s) {
    const double n_steps = static_cast<double>(a.output_ids.size()) - 1;  // the first token comes out of reading the prompt
    return {{"prompt", a.prompt},
            {"input_ids", a.input_ids},
            {"output_ids", a.output_ids},
            {"text", a.text},
            {"complete", a.stop == Stop::stop_id},
            {"timing",
             {{"load_s", load_s},
              {"image_s", open_s + a.image_s},
              {"vision_s", a.vision_s},
              {"prefill_s", a.prefill_s},
              {"decode_s", a.decode_s},
              {"decode_tokens_per_s", n_steps > 0 && a.decode_s > 0 ? n_steps / a.decode_s : 0.0}}}};
}

/// How a model reads. A language model alone has no form of its own for questions: it goes on with the text.
template <Backend B>
ChatParts parts_of(const Model<B>& model) {
    if (const auto* llm = std::get_if<Language<B>>(&model.parts)) {
        if (!llm->tokenizer) throw LoadError{model.folder.string(), "has no tokenizer, which is needed to read text"};
        const std::size_t n = llm->model.llm.max_positions();
        return {.tokenizer = *llm->tokenizer, .prompts = PromptBuilder{PromptFormat{}}, .transforms = {}, .max_tokens = n, .llm_max_length = n};
    }
    const Vlm<B>& vlm = model.vlm();
    return chat_parts(vlm, vlm.model.llm.max_positions());
}

inline Prompt prompt_of(const ChatParts& parts, const std::string& text, bool raw) { return raw ? parts.raw(text) : parts.ask(text); }

/// Answers as ask_batch gives them; on_text gets those of a single question as they come, and "" for each token of several.
/// A backend that records is asked a single question in a conversation: there the steps of an answer are recorded.
template <Backend B, class M>
std::vector<Answer> answers_to(B& be, const M& model, ChatParts parts, std::span<const Question> questions, const Ask& args,
                               const std::function<bool(std::string_view)>& on_text) {
    const Question& q = questions[0];
    if constexpr (RecordingBackend<B>) {
        if (questions.size() == 1 && (SeeingModel<M, B> || !q.picture)) {
            auto        ids = prompt_of(parts, q.text, q.raw).ids;
            std::size_t n_soft = 0;
            if constexpr (SeeingModel<M, B>) n_soft = q.picture ? model.n_soft_tokens() : 0;
            parts.place_picture(ids, q.picture != nullptr);
            expect_room(ids.size(), n_soft, parts.max_tokens);
            const std::size_t n_read = ids.size() + n_soft;
            parts.max_tokens = n_read + std::min(args.max_new_tokens, parts.max_tokens - n_read);
            prism::Chat chat{be, model, std::move(parts)};
            if constexpr (SeeingModel<M, B>)
                if (q.picture) chat.show(*q.picture);
            const AskOptions options{.max_new_tokens = args.max_new_tokens, .sampling = args.sampling, .on_text = on_text};
            return {q.raw ? chat.ask_raw(q.text, options) : chat.ask(q.text, options)};
        }
    }
    TextStream      text = parts.tokenizer.stream();
    AskBatchOptions options{.max_new_tokens = args.max_new_tokens, .sampling = args.sampling};
    options.on_token = [&](std::size_t, std::int32_t id) { return on_text(questions.size() == 1 ? text.push(id) : ""); };
    auto answers = ask_batch(be, model, parts, questions, options);
    if (questions.size() == 1) on_text(text.finish());
    return answers;
}

/// Says which answers do not end by themselves. Of a language model none need to.
inline void note_cut(const Common& common, std::span<const Answer> answers, std::size_t max_new_tokens) {
    const auto say = [&](Stop stop, const std::string& why) {
        const auto n = std::ranges::count(answers, stop, &Answer::stop);
        if (n > 0) note(common, (answers.size() == 1 ? "the answer is" : std::to_string(n) + " of " + std::to_string(answers.size()) + " answers are") + " cut " + why);
    };
    say(Stop::max_new_tokens, "after " + std::to_string(max_new_tokens) + " tokens (--max-new-tokens)");
    say(Stop::context_full, "where the model's context is full");
}

template <Backend B>
void run_on(const Common& common, const Ask& args) {
    if (args.images.empty() && args.prompts.empty()) throw UsageError{"ask: --image or --prompt is needed"};
    for (const std::string& prompt : args.prompts)
        if (!args.raw) expect_text("--prompt", prompt);
    const auto        prompts = args.prompts.empty() ? std::vector<std::string>{default_prompt} : args.prompts;
    const std::size_t n_images = args.images.size(), n_prompts = prompts.size(), n = std::max(n_images, n_prompts);
    if (n_images > 1 && n_prompts > 1 && n_images != n_prompts)
        throw UsageError{std::to_string(n_images) + " of --image and " + std::to_string(n_prompts) + " of --prompt: give one of either, or as many"};
    from_options([&] { return Sampler{args.sampling}; });

    struct Picture {
        Image  image;
        double open_s;
    };
    std::deque<Picture> pictures;
    for (const auto& path : args.images) {
        const auto start = std::chrono::steady_clock::now();
        Image      image = open_picture(common, path);
        pictures.push_back({std::move(image), prism::detail::seconds_since(start)});
    }
    B           be = open_backend<B>(common);
    const auto  model = open_model(be, common);
    const auto* llm = std::get_if<Language<B>>(&model.parts);
    const auto* vlm = llm ? nullptr : &model.vlm();
    auto        parts = parts_of(model);
    if (llm) parts.raw_has_control_tokens = args.raw;
    const bool raw = args.raw || llm;
    if (vlm && n_images == 0) note(common, "no --image given: it is asked without a picture");

    std::vector<Question> questions;
    std::size_t           n_tokens = 0;
    const auto            at = [&](std::size_t i, std::size_t count) { return count == 1 ? 0 : i; };
    for (std::size_t i = 0; i < n; ++i) {
        const std::string& text = prompts[at(i, n_prompts)];
        if (i < n_prompts) note_unknown_words(common, parts.tokenizer, text);
        questions.push_back({n_images ? &pictures[at(i, n_images)].image : nullptr, text, raw});
        const Prompt prompt = prompt_of(parts, text, raw);
        if (prompt.ids.size() < prompt.n_ids)
            note(common, "the prompt is cut to its first " + std::to_string(prompt.ids.size()) + " of " + std::to_string(prompt.n_ids) + " tokens, the most that this model takes");
        n_tokens += prompt.ids.size() + (n_images ? vlm ? vlm->model.n_soft_tokens() : 0 : 0);
    }

    const bool              streams = !common.json && n == 1;
    Reading                 reading{common, be, vlm, llm ? llm->model.llm : vlm->model.llm, n_images, n_tokens};
    std::optional<Progress> writing;
    std::atomic<std::size_t> n_written{0};
    const auto               on_text = [&](std::string_view text) {
        reading.end();
        if (streams) std::cout << text << std::flush;
        else if (n_written++ == 0)
            writing.emplace(!common.quiet, "answering", static_cast<double>(n * args.max_new_tokens), 1, "tokens", [&] { return static_cast<double>(n_written.load()); });
        return bool(std::cout);
    };
    const auto answers = vlm ? answers_to(be, vlm->model, parts, questions, args, on_text) : answers_to(be, llm->model, parts, questions, args, on_text);
    reading.end(), writing.reset();

    if (streams) {
        std::cout << std::endl;
    } else if (!common.json) {
        for (std::size_t i = 0; i < n; ++i) {
            if (n_images > 1) std::cout << args.images[at(i, n_images)].string() << ": ";
            std::cout << questions[i].text << '\n' << answers[i].text << "\n\n";
        }
    } else {
        Json all = Json::array();
        for (std::size_t i = 0; i < n; ++i) all.push_back(json_of(answers[i], model.load_s, n_images ? pictures[at(i, n_images)].open_s : 0));
        print(n == 1 ? all[0] : all);
    }
    if (vlm) note_cut(common, answers, args.max_new_tokens);
}

template <Backend B>
void run_on(const Common& common, const Chat& args) {
    if (common.json) throw UsageError{"chat has no --json; use ask"};
    from_options([&] { return Sampler{args.sampling}; });
    std::optional<Image> image;
    if (!args.image.empty()) image = open_picture(common, args.image);
    B           be = open_backend<B>(common);
    const auto  model = open_model(be, common);
    const auto& vlm = model.vlm();
    // The cache is taken at once: room for some two thousand tokens of talk, where the model was trained for that many.
    const std::size_t max_tokens = std::min(vlm.model.llm.max_positions(), vlm.model.n_soft_tokens() + 2048);
    prism::Chat       chat{be, vlm, max_tokens};
    const auto        show = [&](const Image& picture) {
        Reading reading{common, be, &vlm, vlm.model.llm, 1, 1};
        chat.show(picture);
    };
    if (image) show(*image);

    const bool asks = ::isatty(STDIN_FILENO) && !common.quiet;
    for (std::string line; (asks ? std::cerr << "> " << std::flush : std::cerr), std::getline(std::cin, line);) {
        const auto argument = [&](std::string_view command) { return std::string(unicode::strip(std::string_view(line).substr(command.size()))); };
        try {
            const std::string_view said = unicode::strip(line);
            if (said.empty()) continue;
            if (said == "/quit") break;
            if (said == "/reset") {
                chat.restart();
            } else if (line.starts_with("/image ")) {
                show(open_picture(common, argument("/image")));
            } else if (line.starts_with('/')) {
                throw ConfigError{"line", line, "a question, /image FILE, /reset or /quit"};
            } else {
                note_unknown_words(common, *vlm.tokenizer, line);
                const Interrupt until_answered{SIGINT};  // ends the answer; between answers it ends the program: std::cin would go on waiting for its line
                Reading reading{common, be, nullptr, vlm.model.llm, 0, chat.session().length() ? 1 : vlm.model.n_soft_tokens()};
                const Answer answer = chat.ask(line, {.max_new_tokens = args.max_new_tokens, .sampling = args.sampling,
                                                      .on_text = [&](std::string_view text) { return reading.end(), bool(std::cout << text << std::flush); },
                                                      .cancel = &Interrupt::asked()});
                std::cout << std::endl;
                note_cut(common, {&answer, 1}, args.max_new_tokens);
            }
        } catch (const Error& e) {
            if (!::isatty(STDIN_FILENO)) throw;
            std::cerr << e.what() << '\n';  // a person can try something else
        }
    }
}

/// The choices of "a, b, c", without the spaces around them unless those are `kept`. Throws UsageError unless they are different texts.
inline std::vector<std::string> choices_of(std::string_view list, bool kept) {
    std::vector<std::string> choices;
    for (std::size_t at = 0, end = 0; end != list.npos; at = end + 1) {
        end = list.find(',', at);
        const std::string_view choice = list.substr(at, end - at);
        choices.emplace_back(kept ? choice : unicode::strip(choice));
    }
    for (const auto& choice : choices)
        if (choice.empty() || std::ranges::count(choices, choice) > 1)
            throw UsageError{"--choices '" + std::string(list) + "': " + (choice.empty() ? "one is empty" : "'" + choice + "' is there twice") + "; allowed: different texts, separated by commas"};
    return choices;
}

template <Backend B>
void run_on(const Common& common, const Score& args) {
    if (!args.raw) expect_text("--prompt", args.prompt);
    const auto choices = choices_of(args.choices, args.raw);
    std::optional<Image> image;
    if (!args.image.empty()) image = open_picture(common, args.image);
    B           be = open_backend<B>(common);
    const auto  model = open_model(be, common);
    const auto& vlm = model.vlm();
    ChatParts   parts = parts_of(model);
    note_unknown_words(common, parts.tokenizer, args.prompt + ' ' + args.choices);

    const std::size_t n_tokens = prompt_of(parts, args.prompt, args.raw).ids.size(), n_soft = image ? vlm.model.n_soft_tokens() : 0;
    std::size_t       longest = 0;  // bytes: a choice never has more tokens
    for (const auto& choice : choices) longest = std::max(longest, choice.size());
    expect_room(std::min(n_tokens, parts.llm_max_length), n_soft, parts.max_tokens);
    parts.max_tokens = std::min(parts.max_tokens, n_tokens + n_soft + longest + 1);
    prism::Chat chat{be, vlm.model, parts};
    Reading     reading{common, be, &vlm, vlm.model.llm, image ? 1U : 0U, n_tokens + n_soft};
    if (image) chat.show(*image);
    const auto probabilities = chat.score(args.prompt, choices, args.raw);
    reading.end();

    Json result = Json::object();
    for (std::size_t i = 0; i < choices.size(); ++i) {
        result[choices[i]] = probabilities[i];
        if (!common.json) std::cout << choices[i] << '\t' << probabilities[i] << '\n';
    }
    if (common.json) print({{"probabilities", result}});
}

template <Backend B>
void run_on(const Common& common, const Act& args) {
    if (!args.raw) expect_text("--instruction", args.instruction);
    const Image image = open_picture(common, args.image);
    B           be = open_backend<B>(common);
    const auto  model = open_model(be, common, Default::acts);
    const auto& vla = model.vlm();
    Policy      policy{be, vla, args.unnorm_key};
    Reading     reading{common, be, &vla, vla.model.llm, 1, vla.model.n_soft_tokens() + policy.n_dimensions()};
    const auto  action = args.raw ? policy.act_raw(image, args.instruction) : policy.act(image, args.instruction);
    reading.end();
    if (common.json) return print({{"prompt", action.prompt}, {"input_ids", action.input_ids}, {"action_token_ids", action.token_ids}, {"action", action.values}});
    for (std::size_t i = 0; i < action.values.size(); ++i) std::cout << (i ? " " : "") << action.values[i];
    std::cout << '\n';
}

}  // namespace program
