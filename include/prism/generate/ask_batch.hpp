// ask_batch: several questions about several pictures, answered together: every step reads each weight once for all.
//
//     std::vector<prism::Question> questions{{&cat, "What is it?"}, {&cat, "What colour?"}, {&dog, "What is it?"}};
//     for (const auto& answer : prism::ask_batch(cpu, vlm, questions)) std::cout << answer.text << '\n';
#pragma once

#include "prism/generate/batch.hpp"
#include "prism/generate/chat.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace prism {

/// A question about a picture, or about none. The same address is the same picture.
struct Question {
    const Image* picture = nullptr;
    std::string  text{};
    bool         raw = false;  // the text is the whole prompt, and control tokens that it spells are control tokens
};

struct AskBatchOptions {
    std::size_t     max_new_tokens = 512;
    SamplingOptions sampling = {};
    std::size_t     max_together = 8;  // questions that are decoded at a time: each takes a cache
    std::function<bool(std::size_t question, std::int32_t id)> on_token = {};  // return false to end that answer
    const std::atomic<bool>* cancel = nullptr;
};

/// Answers in the order of the questions, each in a conversation of its own. Each picture is encoded once. An answer's
/// image_s and vision_s are the times of its picture, its prefill_s and decode_s those of all that were decoded with it.
/// Throws as Chat does; a prompt that does not fit into parts.max_tokens is found before any work.
template <Backend B, class M>
std::vector<Answer> ask_batch(B& be, const M& model, const ChatParts& parts, std::span<const Question> questions,
                              const AskBatchOptions& options = {}) {
    const std::size_t         d = model.llm.d_model();
    const std::size_t         n_soft = [&]() -> std::size_t {
        if constexpr (SeeingModel<M, B>) return model.n_soft_tokens();
        else return 0;
    }();
    std::vector<Answer>       answers;
    std::vector<BatchItem<B>> items;
    for (const Question& q : questions) {
        Prompt prompt = q.raw ? parts.raw(q.text) : parts.ask(q.text);
        answers.push_back({.prompt = std::move(prompt.text), .input_ids = prompt.ids});
        const std::size_t at = parts.place_picture(prompt.ids, q.picture != nullptr);
        expect_room(prompt.ids.size(), q.picture ? n_soft : 0, parts.max_tokens);
        items.push_back({.ids = std::move(prompt.ids), .picture_at = at});
    }

    struct Seen {
        Buffer<typename B::space> soft;
        double                    image_s = 0, vision_s = 0;
    };
    std::map<const Image*, Seen> all_seen;
    for (std::size_t i = 0; i < questions.size(); ++i) {
        if (!questions[i].picture) continue;
        if constexpr (SeeingModel<M, B>) {
            auto [at, fresh] = all_seen.try_emplace(questions[i].picture);
            Seen& seen = at->second;
            if (fresh) {
                auto            start = std::chrono::steady_clock::now();
                const Pixels<B> pixels{be, parts.transforms, *questions[i].picture};
                seen.image_s = detail::seconds_since(start);
                start = std::chrono::steady_clock::now();
                seen.soft = be.allocate(n_soft * d * sizeof(float));
                Workspace<B> ws{be, seeing_cost(model, pixels.views()).workspace_bytes};
                model.see(be, ws, pixels.views(), {seen.soft.template as<float>(), {n_soft, d}});
                be.wait();  // for the time
                seen.vision_s = detail::seconds_since(start);
            }
            items[i].soft = {seen.soft.template as<const float>(), {n_soft, d}};
            answers[i].image_s = seen.image_s, answers[i].vision_s = seen.vision_s;
        } else {
            throw ConfigError{"picture", "given", "none: this model has no eyes"};
        }
    }

    GenerateOptions generate{.max_new_tokens = options.max_new_tokens, .sampling = options.sampling, .cancel = options.cancel};
    if (const auto eos = parts.tokenizer.eos_id()) generate.stop_ids.push_back(*eos);
    const std::size_t group = std::max<std::size_t>(1, options.max_together);
    for (std::size_t first = 0; first < items.size(); first += group) {
        const auto               together = std::span<const BatchItem<B>>(items).subspan(first, std::min(group, items.size() - first));
        std::vector<std::size_t> room;  // tokens that still fit, by item
        for (const auto& item : together) room.push_back(parts.max_tokens - item.ids.size() - item.soft.rows());
        generate.max_new_tokens = std::min(options.max_new_tokens, *std::ranges::max_element(room) + 2);  // caches are taken for as many
        const auto on_token = [&](std::size_t i, std::int32_t id) {
            const bool wanted = !options.on_token || options.on_token(first + i, id);
            return room[i] > 0 && (--room[i], wanted);
        };
        std::vector<Generated> out = generate_batch<B>(be, model.llm, together, generate, on_token);
        for (std::size_t i = 0; i < out.size(); ++i) {
            Answer& answer = answers[first + i];
            answer.text = unicode::strip(parts.tokenizer.decode(out[i].ids));
            answer.output_ids = std::move(out[i].ids);
            answer.stop = out[i].stop == Stop::callback && room[i] == 0 ? Stop::context_full : out[i].stop;
            answer.prefill_s = out[i].prefill_s, answer.decode_s = out[i].decode_s;
        }
    }
    return answers;
}

template <Backend B>
std::vector<Answer> ask_batch(B& be, const Pretrained<B>& p, std::span<const Question> questions, const AskBatchOptions& options = {}) {
    return ask_batch(be, p.model, chat_parts(p, p.model.llm.max_positions()), questions, options);
}

}  // namespace prism
