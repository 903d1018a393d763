// logits: what a model thinks of every token at every position, on any backend.
#pragma once

#include "files.hpp"
#include "models.hpp"
#include "progress.hpp"

#include "prism/generate/chat.hpp"

#include <algorithm>
#include <optional>
#include <vector>

namespace program {

using namespace prism;

/// The ids of the prompt, and before which of them a picture stands.
template <Backend B>
std::pair<std::vector<std::int32_t>, std::size_t> prompt_ids(const Common& common, const Model<B>& model, const Logits& args) {
    const auto* llm = std::get_if<Language<B>>(&model.parts);
    if (!args.ids.empty()) {
        auto ids = args.ids;
        if (llm) return {std::move(ids), 0};
        const auto token = model.vlm().image_token;  // LLaVA's prompts say where the picture goes
        const auto at = token && !args.image.empty() ? std::ranges::find(ids, *token) : ids.end();
        if (at == ids.end()) return {std::move(ids), model.vlm().picture_at};
        const auto index = static_cast<std::size_t>(at - ids.begin());
        ids.erase(at);
        return {std::move(ids), index};
    }
    if (llm) {
        if (!llm->tokenizer) throw LoadError{model.folder.string(), "has no tokenizer; give token ids with --ids"};
        return {llm->tokenizer->encode(*args.prompt, {.parse_special = args.raw}), 0};
    }
    const ChatParts parts = chat_parts(model.vlm(), model.vlm().model.llm.max_positions());
    note_unknown_words(common, parts.tokenizer, *args.prompt);
    auto            ids = (args.raw ? parts.raw(*args.prompt) : parts.ask(*args.prompt)).ids;
    const auto      at = parts.place_picture(ids, !args.image.empty());
    return {std::move(ids), at};
}

template <Backend B, class M>
void score_all(const Common& common, const Logits& args, B& be, const Model<B>& opened, const M& model, const Image* image) {
    const auto [ids, at] = prompt_ids(common, opened, args);
    std::size_t              n_soft = 0;
    std::vector<ImageTransform> transforms;
    if constexpr (SeeingModel<M, B>) {
        if (image) n_soft = model.n_soft_tokens();
        transforms = model.transforms();
    } else if (image) {
        throw LoadError{opened.folder.string(), "is a language model alone and reads no pictures"};
    }
    expect_room(ids.size(), n_soft, model.llm.max_positions());
    const std::size_t n = ids.size() + n_soft, vocab = model.llm.vocab_size();

    Session<B, M>      session{be, model, {.max_tokens = n}};
    std::vector<float> logits(n * vocab);
    {
        const Progress bar{!common.quiet, "reading", static_cast<double>(reading_cost(model.llm, n).flops), 1e9, "GFLOP", operations_of(be)};
        if constexpr (SeeingModel<M, B>)
            if (image) session.show(Pixels<B>{be, transforms, *image}.views());
        session.all_logits(
            ids, [&](std::size_t position, std::span<const float> row) { std::ranges::copy(row, &logits[position * vocab]); }, at);
    }
    write_tensor(common, args.out, "logits", {n, vocab}, logits);
}

template <Backend B>
void run_on(const Common& common, const Logits& args) {
    if (!args.prompt && args.ids.empty()) throw UsageError{"logits: --prompt or --ids is needed"};
    if (args.prompt && !args.raw) expect_text("--prompt", *args.prompt);
    expect_one_output(common, args.out);
    std::optional<Image> image;
    if (!args.image.empty()) image = open_picture(common, args.image);
    B            be = open_backend<B>(common);
    const auto   model = open_model(be, common);
    const Image* picture = image ? &*image : nullptr;
    if (const auto* llm = std::get_if<Language<B>>(&model.parts)) score_all(common, args, be, model, llm->model, picture);
    else score_all(common, args, be, model, model.vlm().model, picture);
}

}  // namespace program
