// Policy: OpenVLA in a control loop. A picture and an instruction in, one robot action out.
//
//     prism::Policy policy{cpu, vla, "bridge_orig"};              // vla from from_pretrained
//     auto action = policy.act(camera_image, "pick up the mug");   // action.values: un-normalised, one per dimension
#pragma once

#include "prism/generate/chat.hpp"
#include "prism/generate/recorded_action.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace prism {

/// The statistics under that key; an empty key will do where there is one set only. Throws ConfigError that lists the keys, Error where there are none.
template <class = void>
const ActionStatistics& action_statistics_for(const std::map<std::string, ActionStatistics>& all, const std::string& key) {
    if (key.empty() && all.size() == 1) return all.begin()->second;
    if (const auto found = all.find(key); found != all.end()) return found->second;
    if (all.empty()) throw Error("this model has no action statistics, so it is no policy");
    std::string keys;
    for (const auto& [name, unused] : all) keys += (keys.empty() ? "" : ", ") + name;
    throw ConfigError{"unnorm_key", key, keys};
}

/// The number that an action token stands for, in [-1, 1]: the centre of its bin. Tokens that are none count as the
/// nearest end. Source: openvla/openvla, prismatic/vla/action_tokenizer.py.
inline double action_of_token(std::int32_t id, const ActionVocabulary& vocabulary) {
    const auto n_centres = static_cast<std::int64_t>(vocabulary.n_bins) - 1;
    const auto bin = std::clamp<std::int64_t>(static_cast<std::int64_t>(vocabulary.size) - id - 1, 0, n_centres - 1);
    return -1.0 + static_cast<double>(2 * bin + 1) / static_cast<double>(n_centres);
}

/// Actions as the robot takes them: [-1, 1] back to [q01, q99] where the mask says so.
template <class = void>
std::vector<double> unnormalise(std::span<const std::int32_t> ids, const ActionStatistics& s, const ActionVocabulary& vocabulary) {
    std::vector<double> values;
    for (std::size_t d = 0; d < ids.size(); ++d) {
        const double a = action_of_token(ids[d], vocabulary);
        values.push_back(s.mask[d] ? 0.5 * (a + 1) * (s.q99[d] - s.q01[d]) + s.q01[d] : a);
    }
    return values;
}

struct Action {
    std::string               prompt;
    std::vector<std::int32_t> input_ids{}, token_ids{};
    std::vector<double>       values{};  // un-normalised
    double                    vision_s = 0, prefill_s = 0, decode_s = 0;  // where all is one recording: vision_s prepares the picture, decode_s is the rest
};

struct PolicyOptions {
    std::size_t max_tokens = 0;            // of picture, instruction and action together; 0: room for an instruction of some hundred words
    bool        action_rows_only = false;  // score only the rows of the head that are actions: faster, never another token
};

namespace detail {

/// What acts for a policy: a recording where the backend records, else a conversation.
template <class B>
struct Actor {
    using type = Chat<B, Prismatic<B>>;
};
template <RecordingBackend B>
struct Actor<B> {
    using type = RecordedAction<B>;
};

}  // namespace detail

/// Runs OpenVLA step by step. Source: openvla/openvla, extern/hf/modeling_prismatic.py, predict_action.
template <Backend B>
class Policy {
public:
    /// Throws ConfigError for an unknown key. The model has to outlive the policy.
    Policy(B& be, const Pretrained<B>& vla, const std::string& unnorm_key = {}, PolicyOptions options = {})
        : vla_(&vla), statistics_(action_statistics_for(vla.action_statistics, unnorm_key)), options_(with_room(vla.model, options)), tokenizer_(&tokenizer_of(vla)),
          actor_(make_actor(be)) {}

    std::size_t n_dimensions() const { return statistics_.q01.size(); }

    /// The action for what the camera sees. The instruction goes lower-cased into the model's question.
    Action act(const Image& image, std::string_view instruction) {
        const auto pieces = openvla_pieces(instruction, vla_->prompt_style.starts_with("vicuna"));  // as the first release has it
        return act(image, detail::joined(pieces), tokenizer_->encode(pieces));
    }
    /// The same with the whole prompt given; control tokens that it spells are control tokens.
    Action act_raw(const Image& image, std::string_view prompt) {
        return act(image, std::string(prompt), tokenizer_->encode(prompt, {.parse_special = true}));
    }

private:
    using Actor = typename detail::Actor<B>::type;

    static PolicyOptions with_room(const Prismatic<B>& model, PolicyOptions options) {
        if (options.max_tokens == 0) options.max_tokens = std::min(model.llm.max_positions(), model.n_soft_tokens() + 384);
        return options;
    }

    Actor make_actor(B& be) const {
        if constexpr (RecordingBackend<B>) return Actor(be, vla_->model, options_.max_tokens);
        else return Actor(be, *vla_, options_.max_tokens);
    }

    /// In training the text went on with a space, which Llama-2 splits off as a token of its own: the lone U+2581.
    static constexpr std::int32_t lone_space = 29871;

    Action act(const Image& image, std::string prompt, std::vector<std::int32_t> ids) {
        if (tokenizer_->token(lone_space) == "\xe2\x96\x81" && (ids.empty() || ids.back() != lone_space)) ids.push_back(lone_space);
        expect_room(ids.size(), vla_->model.n_soft_tokens(), options_.max_tokens);
        expect_room(ids.size() + n_dimensions(), vla_->model.n_soft_tokens(), options_.max_tokens + 1);  // the action's last token is not read
        Action          action{.prompt = std::move(prompt), .input_ids = ids};
        const auto      start = std::chrono::steady_clock::now();
        GenerateOptions generate{.max_new_tokens = n_dimensions()};
        if (options_.action_rows_only) {
            const auto& v = vla_->action_vocabulary;
            generate.n_ids = std::min(v.n_bins, v.size), generate.first_id = v.size - generate.n_ids;
        }
        actor_.show(image);
        action.vision_s = detail::seconds_since(start);
        if constexpr (RecordingBackend<B>) {
            const ActionRequest request{n_dimensions(), generate.first_id, detail::n_scored(generate, vla_->model.llm.vocab_size())};
            action.token_ids = actor_.act(ids, request);
            action.decode_s = detail::seconds_since(start) - action.vision_s;
        } else {
            Generated out = actor_.session().generate(ids, generate);
            action.token_ids = std::move(out.ids);
            action.prefill_s = out.prefill_s, action.decode_s = out.decode_s;
        }
        if (action.token_ids.size() != n_dimensions())
            throw ConfigError{"max_tokens", std::to_string(options_.max_tokens), "enough for picture, prompt and " + std::to_string(n_dimensions()) + " action tokens"};
        action.values = unnormalise(action.token_ids, statistics_, vla_->action_vocabulary);
        return action;
    }

    const Pretrained<B>*  vla_;
    ActionStatistics      statistics_;
    PolicyOptions         options_;
    const Tokenizer*      tokenizer_;
    Actor                 actor_;
};

}  // namespace prism
