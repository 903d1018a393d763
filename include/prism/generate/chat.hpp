// Chat: questions about a picture, in text.
//
//     prism::Chat chat{cpu, vlm};                                 // vlm from from_pretrained
//     chat.show(prism::read_image("cat.jpg"));
//     auto answer = chat.ask("What is in it?", {.on_text = [](std::string_view s) { return bool(std::cout << s); }});
#pragma once

#include "prism/generate/session.hpp"
#include "prism/image/read.hpp"
#include "prism/model/pixels.hpp"
#include "prism/model/pretrained.hpp"

#include <algorithm>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

/// A question as the model reads it.
struct Prompt {
    std::string               text;  // as the tokenizer got it
    std::vector<std::int32_t> ids;
    std::size_t               n_ids = ids.size();  // before it was cut to the longest that the model takes
};

/// What a conversation needs besides the model: how text becomes tokens, questions prompts, and pictures pixels.
struct ChatParts {
    Tokenizer                   tokenizer;
    PromptBuilder               prompts;
    std::vector<ImageTransform> transforms;            // one a tower
    std::size_t                 max_tokens = 2048;     // of picture, prompts and answers together
    std::size_t                 llm_max_length = 2048;  // of one prompt's text; longer ones are cut at the end, as in the reference
    std::optional<std::int32_t> image_token = {};      // LLaVA: the token that the picture replaces
    bool                        raw_has_control_tokens = true;  // where a prompt as it stands spells them

    /// A question in the model's own form, after the turns that `prompts` holds. Text that spells a control token stays
    /// text.
    template <class = void>
    Prompt ask(std::string_view question) const {
        PromptBuilder turn = prompts;
        turn.add_turn(Role::human, question);
        return cut({turn.prompt(), tokenizer.encode(turn.pieces())});
    }
    /// A prompt as it stands. Control tokens that it spells are control tokens.
    template <class = void>
    Prompt raw(std::string_view prompt) const { return cut({std::string(prompt), tokenizer.encode(prompt, {.parse_special = raw_has_control_tokens})}); }

    /// Returns before which of the ids the picture stands; where a token keeps its place, takes that out.
    template <class = void>
    std::size_t place_picture(std::vector<std::int32_t>& ids, bool has_picture) const {
        if (image_token) {
            const auto at = std::find(ids.begin(), ids.end(), *image_token);
            if (at == ids.end()) return 1;
            const auto index = static_cast<std::size_t>(at - ids.begin());
            if (has_picture) ids.erase(at);
            return index;
        }
        return 1;
    }

private:
    template <class = void>
    Prompt cut(Prompt prompt) const {
        if (!image_token && prompt.ids.size() > llm_max_length) prompt.ids.resize(llm_max_length);
        return prompt;
    }
};

struct AskOptions {
    std::size_t                           max_new_tokens = 512;
    SamplingOptions                       sampling = {};
    std::function<bool(std::string_view)> on_text = {};  // whole characters as they come; return false to stop
    const std::atomic<bool>*              cancel = nullptr;
};

struct Answer {
    std::string               prompt;  // as the tokenizer got it
    std::vector<std::int32_t> input_ids{}, output_ids{};
    std::string               text{};  // control tokens left out, white space around it removed
    Stop                      stop = Stop::max_new_tokens;
    double                    image_s = 0, vision_s = 0, prefill_s = 0, decode_s = 0;  // image_s: preparing the picture
};

/// The tokenizer of a folder's model. Throws LoadError without one.
template <Backend B>
const Tokenizer& tokenizer_of(const Pretrained<B>& p) {
    if (!p.tokenizer) throw LoadError{p.tokenizer_folder.string(), "holds no tokenizer: tokenizer.json, tokenizer.model, or vocab.json with merges.txt"};
    return *p.tokenizer;
}

/// What a folder says, as parts of a conversation. Throws LoadError without a tokenizer.
template <Backend B>
ChatParts chat_parts(const Pretrained<B>& p, std::size_t max_tokens) {
    return {.tokenizer = tokenizer_of(p), .prompts = p.prompts(), .transforms = p.model.transforms(), .max_tokens = max_tokens,
            .llm_max_length = p.model.config.llm_max_length, .image_token = p.image_token};
}

/// A conversation about a picture. The picture is encoded once; of each prompt only what is new is read. Not for several
/// threads at once; the model behind it is.
template <Backend B, class M>
class Chat {
public:
    Chat(B& be, const M& model, ChatParts parts)
        : be_(&be), parts_(std::move(parts)), fresh_prompts_(parts_.prompts), session_(be, model, {.max_tokens = parts_.max_tokens}) {}
    explicit Chat(B& be, const Pretrained<B>& p, std::size_t max_tokens = 2048) requires std::same_as<M, Prismatic<B>>
        : Chat(be, p.model, chat_parts(p, max_tokens)) {}

    Session<B, M>&   session() { return session_; }
    const Tokenizer& tokenizer() const { return parts_.tokenizer; }

    /// Looks at a picture; the conversation starts anew.
    void show(const Image& image) {
        const auto      start = std::chrono::steady_clock::now();
        const Pixels<B> pixels{*be_, parts_.transforms, image};
        const double    image_s = detail::seconds_since(start);
        show(pixels);
        image_s_ = image_s;
    }
    /// The same with pixels that are prepared already.
    void show(const Pixels<B>& pixels) {
        const auto start = std::chrono::steady_clock::now();
        session_.show(pixels.views());
        be_->wait();  // for the time
        image_s_ = 0, vision_s_ = detail::seconds_since(start);
        restart();
    }
    /// Forgets all turns; the picture stays.
    void restart() { parts_.prompts = fresh_prompts_; }

    /// One more turn: the question in the model's own prompt form, and the answer, which becomes part of the conversation.
    /// Text that spells a control token stays text. Throws ConfigError when the conversation has become too long, GenerationError.
    Answer ask(std::string_view question, const AskOptions& options = {}) {
        Prompt prompt = parts_.ask(question);
        if (parts_.prompts.n_turns() > 0 && prompt.ids.size() < prompt.n_ids)  // a first question is cut as in the reference; here the question would go
            throw ConfigError{"prompt", std::to_string(prompt.n_ids) + " tokens with all turns so far", "at most " + std::to_string(prompt.ids.size()) + ": begin anew"};
        Answer answer = complete(std::move(prompt), options);
        parts_.prompts.add_turn(Role::human, question);
        parts_.prompts.add_turn(Role::gpt, answer.text);
        return answer;
    }

    /// Completes a prompt as it stands, outside of the conversation. Control tokens that it spells are control tokens.
    Answer ask_raw(std::string_view prompt, const AskOptions& options = {}) {
        return complete(parts_.raw(prompt), options);
    }

    /// The probability of each choice as the answer's beginning, normalised over the choices; `raw` takes the question
    /// as the whole prompt. A choice of several tokens counts with all of them.
    std::vector<double> score(std::string_view question, std::span<const std::string> choices, bool raw = false) {
        std::vector<std::int32_t>              ids = (raw ? parts_.raw(question) : parts_.ask(question)).ids;
        std::vector<std::vector<std::int32_t>> tokens;
        for (const auto& c : choices) tokens.push_back(parts_.tokenizer.encode(c, {.add_special = false}));
        const auto          at = parts_.place_picture(ids, session_.has_picture());
        std::vector<double> p = session_.log_probabilities(ids, tokens, at);
        double              top = -INFINITY, sum = 0;
        for (double x : p) top = std::max(top, x);
        for (double& x : p) sum += x = std::exp(x - top);
        for (double& x : p) x /= sum;
        return p;
    }

private:
    Answer complete(Prompt prompt, const AskOptions& options) {
        Answer answer{.prompt = std::move(prompt.text), .input_ids = prompt.ids, .image_s = std::exchange(image_s_, 0), .vision_s = std::exchange(vision_s_, 0)};
        auto             stream = parts_.tokenizer.stream();
        std::string      text;
        bool             going = true;
        const auto       say = [&](const std::string& piece) {
            text += piece;
            if (going && options.on_text && !piece.empty()) going = options.on_text(piece);
            return going;
        };
        GenerateOptions generate{.max_new_tokens = options.max_new_tokens, .sampling = options.sampling, .cancel = options.cancel};
        if (const auto eos = parts_.tokenizer.eos_id()) generate.stop_ids.push_back(*eos);
        generate.on_token = [&](std::int32_t id) { return say(stream.push(id)); };
        const std::size_t at = parts_.place_picture(prompt.ids, session_.has_picture());
        try {
            Generated out = session_.generate(prompt.ids, generate, at);
            // The token that ended the answer was not given to on_token; it is control and has no text.
            answer.output_ids = std::move(out.ids);
            answer.stop = out.stop, answer.prefill_s = out.prefill_s, answer.decode_s = out.decode_s;
        } catch (const GenerationError& e) {
            throw GenerationError{e.step, e.ids, text + stream.finish()};
        }
        say(stream.finish());
        answer.text = unicode::strip(text);
        return answer;
    }

    B*            be_;
    ChatParts     parts_;
    PromptBuilder fresh_prompts_;
    Session<B, M> session_;
    double        image_s_ = 0, vision_s_ = 0;  // of a picture that no answer has accounted for
};

template <Backend B, class M>
Chat(B&, const M&, ChatParts) -> Chat<B, M>;
template <Backend B>
Chat(B&, const Pretrained<B>&) -> Chat<B, Prismatic<B>>;
template <Backend B>
Chat(B&, const Pretrained<B>&, std::size_t) -> Chat<B, Prismatic<B>>;

}  // namespace prism
