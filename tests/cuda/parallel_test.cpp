// Several devices: a decoder that they hold together gives what one gives, and replicas share out questions.
#include "sessions.hpp"

#include "prism/backend/parallel.hpp"
#if defined(PRISM_WITH_NCCL)
#include "prism/backend/cuda/nccl.cuh"
#else
#include "prism/backend/cuda/emulated_ranks.hpp"
#endif
#include "prism/generate/chat.hpp"
#include "prism/image/read.hpp"
#include "prism/model/pretrained.hpp"
#include "prism/model/shard.hpp"
#include "support/random_weights.hpp"
#include "support/replicas.hpp"
#include "support/tensors.hpp"

#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

using namespace prism;
using namespace prism::test;

namespace {

const std::filesystem::path reference = std::filesystem::path(PRISM_TEST_DATA) / "reference";

using Load = std::function<TextOnly(Device&)>;

/// What a device makes of a prompt: long enough for products of many rows, and steps that are recorded and replayed.
struct Outcome {
    std::vector<float>        logits;
    std::vector<std::int32_t> greedy{}, again{}, drawn{};

    bool operator==(const Outcome&) const = default;
};
Outcome outcome(Device& be, const Load& load) {
    const TextOnly            model = load(be);
    std::vector<std::int32_t> ids(13);
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>((7 * i + 3) % model.llm.vocab_size());
    Session<Device, TextOnly> session{be, model, {.max_tokens = 40}};
    Outcome                   o{.logits = all_logits(session, ids)};
    o.greedy = session.generate(ids, {.max_new_tokens = 8}).ids;
    session.forget();
    o.again = session.generate(ids, {.max_new_tokens = 8}).ids;
    o.drawn = session.generate(ids, {.max_new_tokens = 5, .sampling = {.temperature = 0.9f, .top_p = 0.9f, .seed = 5}}).ids;
    return o;
}

LlamaConfig small_llama() {
    return {.vocab_size = 96, .d_model = 64, .d_ff = 256, .n_layers = 2, .n_heads = 8, .n_kv_heads = 4, .head_dim = 16, .max_positions = 64, .qkv_bias = true};
}
PhiConfig small_phi() {
    return {.vocab_size = 96, .d_model = 64, .d_ff = 128, .n_layers = 2, .n_heads = 4, .n_kv_heads = 4, .head_dim = 32, .rotary_dim = 8, .max_positions = 64};
}
/// A decoder with random weights, kept in a format.
Load random_decoder(const LanguageModelConfig& config, Dtype kept) {
    const auto tensors = random_tensors(LanguageModel<Device>{config}, 11);
    return [=](Device& be) {
        TextOnly model{LanguageModel<Device>{shard_config(config, rank_of(be))}};
        load_language_model(be, model.llm, Checkpoint{"made by the test", tensors}, {.kept = [kept](std::string_view, Dtype) { return kept; }});
        return model;
    };
}

/// Values of a matrix, whatever its format.
std::vector<float> values_of(const TensorInfo& t) {
    if (item_bytes(t.dtype) > 0 && !t.panels) return to_floats(t);
    std::vector<float> all;
    const std::size_t  rows = t.shape[0], cols = t.elements() / rows;
    with_format(t.dtype, all_formats{}, [&]<Format F>(F) {
        const std::size_t               n = blocks_per_row<F>(cols);
        std::vector<typename F::block> blocks(n);
        std::vector<float>             row(n * F::values_per_block);
        for (std::size_t i = 0; i < rows; ++i) {
            if (t.panels) extract_row<F>(t.data, i, cols, blocks.data());
            else std::memcpy(blocks.data(), t.data + i * n * sizeof(typename F::block), n * sizeof(typename F::block));
            F::decode(blocks, row);
            all.insert(all.end(), row.begin(), row.begin() + static_cast<std::ptrdiff_t>(cols));
        }
    });
    return all;
}

}  // namespace

TEST_CASE("cuda/parallel: shares of a tensor are its rows or columns, in every format and layout") {
    constexpr std::size_t rows = 24, cols = 128, n = 4;
    const auto            values = normal(rows * cols, 3);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::q8, Dtype::q4, Dtype::q4m})
        with_format(dtype, all_formats{}, [&]<Format F>(F) {
            const std::size_t              stride = blocks_per_row<F>(cols);
            std::vector<typename F::block> blocks(rows * stride);
            for (std::size_t i = 0; i < rows; ++i) F::encode(std::span(values).subspan(i * cols, cols), std::span(blocks).subspan(i * stride, stride));
            std::vector<std::byte> panels(panels_bytes<F>(rows, cols));
            interleave<F>(Packed<F, host>{blocks.data(), rows, cols, stride}, panels.data(), 0, (rows + panel_width - 1) / panel_width);
            for (const bool in_panels : {false, true}) {
                CAPTURE(F::name);
                CAPTURE(in_panels);
                TensorInfo whole{"w", dtype, {rows, cols}, {}, in_panels ? panels.data() : reinterpret_cast<const std::byte*>(blocks.data()), nullptr, "memory"};
                whole.panels = in_panels;
                const auto all = values_of(whole);
                for (std::size_t r = 0; r < n; ++r) {
                    const TensorInfo by_rows = shard_of(whole, Cut::rows, {r, n}), by_columns = shard_of(whole, Cut::columns, {r, n});
                    CHECK(by_rows.shape == std::vector{rows / n, cols});
                    CHECK(by_columns.shape == std::vector{rows, cols / n});
                    CHECK(values_of(by_rows) == std::vector(all.begin() + static_cast<std::ptrdiff_t>(r * rows / n * cols), all.begin() + static_cast<std::ptrdiff_t>((r + 1) * rows / n * cols)));
                    std::vector<float> columns;
                    for (std::size_t i = 0; i < rows; ++i)
                        for (std::size_t j = 0; j < cols / n; ++j) columns.push_back(all[i * cols + r * cols / n + j]);
                    CHECK(values_of(by_columns) == columns);
                }
                if (F::values_per_block > 1) CHECK_THROWS_AS(shard_of(whole, Cut::columns, {0, 8}), LoadError);
            }
        });
    // A transposed tensor stays where it lies.
    TensorInfo turned = tensor("w", {cols, rows}, values);
    turned.shape = {rows, cols}, turned.stride = {1, rows};
    const auto all = to_floats(turned);
    CHECK(to_floats(shard_of(turned, Cut::rows, {1, 2})) == std::vector(all.begin() + rows / 2 * cols, all.end()));
    CHECK(to_floats(shard_of(turned, Cut::columns, {1, 2}))[0] == all[cols / 2]);
    const auto bias = tensor("b", {rows}, {values.begin(), values.begin() + rows});
    CHECK(to_floats(shard_of(bias, Cut::rows, {2, 3})) == std::vector(values.begin() + 16, values.begin() + 24));
}

TEST_CASE("cuda/parallel: heads and hidden units are shared out, or it is said why not") {
    const auto part = std::get<LlamaConfig>(shard_config(small_llama(), {1, 4}));
    CHECK(part.n_heads == 2);
    CHECK(part.n_kv_heads == 1);
    CHECK(part.d_ff == 64);
    CHECK(part.head_dim == 16);
    CHECK_THROWS_WITH_AS(shard_config(small_llama(), {0, 8}), "'n_kv_heads' is 4; allowed: a multiple of 8, the devices that hold the model together", ConfigError);
    CHECK_THROWS_AS(shard_config(small_phi(), {0, 3}), ConfigError);
    CHECK(cut_of("llm_backbone.llm.model.layers.3.self_attn.o_proj.weight") == Cut::columns);
    CHECK(cut_of("model.layers.3.self_attn.dense.bias") == Cut::none);
    CHECK(cut_of("model.layers.3.self_attn.q_proj.bias") == Cut::rows);
    CHECK(cut_of("vision_backbone.0.blocks.3.mlp.fc1.weight") == Cut::none);
    CHECK(cut_of("lm_head.weight") == Cut::none);
}

#if !defined(__CUDACC__) || defined(PRISM_WITH_NCCL)
namespace {

#if defined(PRISM_WITH_NCCL)
using Link = cuda::Nccl;
bool enough_devices(std::size_t n) {
    int found = 0;
    return cudaGetDeviceCount(&found) == cudaSuccess && static_cast<std::size_t>(found) >= n;
}
Link link_of(std::size_t n) {
    std::vector<int> devices(n);
    std::iota(devices.begin(), devices.end(), 0);
    return Link{devices};
}
#else
using Link = cuda::EmulatedRanks;
bool enough_devices(std::size_t) { return true; }
Link link_of(std::size_t n) { return Link{n}; }
#endif

/// What `work` returns on each of n ranks.
template <class Work>
auto of_ranks(std::size_t n, Compute compute, Work work) {
    std::vector<std::invoke_result_t<Work&, Rank&, Device&>> results(n);
    Link                                                     link = link_of(n);
    run_ranks(link, [&](Rank& rank) {
        Device be{{.compute = compute, .driver = link.options(rank.number())}};
        results[rank.number()] = work(rank, be);
    });
    return results;
}

void expect_like_one(const Load& load, std::size_t n, double tolerance, Compute compute = Compute::exact) {
    if (!enough_devices(n)) return;
    CAPTURE(n);
    Device        alone{{.compute = compute}};
    const Outcome one = outcome(alone, load);
    CHECK(one.again == one.greedy);
    const auto all = of_ranks(n, compute, [&](Rank&, Device& be) { return outcome(be, load); });
    for (const Outcome& o : all) CHECK((o == all[0]));  // no bit differs between ranks
    CHECK(relative_error(all[0].logits, one.logits) < tolerance);
    if (compute == Compute::exact) {
        CHECK(all[0].greedy == one.greedy);
        CHECK(all[0].drawn == one.drawn);
    }
    CHECK(all[0].again == all[0].greedy);
}

}  // namespace

TEST_CASE("cuda/parallel: a decoder on two and four devices gives the scores and tokens of one") {
    const auto of_folder = [](const char* name) {
        return [folder = reference / "lm" / name](Device& be) { return TextOnly{std::move(language_model_from_pretrained(be, folder).llm)}; };
    };
    expect_like_one(of_folder("llama-bf16-sharded"), 2, 1e-5);
    expect_like_one(of_folder("llama-bf16-sharded"), 4, 1e-5);
    expect_like_one(of_folder("qwen2"), 2, 1e-5);
}

TEST_CASE("cuda/parallel: so does every kind of decoder in every format") {
    for (const Dtype kept : {Dtype::f32, Dtype::bf16, Dtype::q8, Dtype::q4m}) {
        CAPTURE(to_string(kept));
        expect_like_one(random_decoder(small_llama(), kept), kept == Dtype::q8 ? 4 : 2, 1e-5);
        expect_like_one(random_decoder(small_phi(), kept), kept == Dtype::bf16 ? 4 : 2, 1e-5);
    }
    expect_like_one(random_decoder(small_llama(), Dtype::bf16), 2, 3e-2, Compute::fast);
}

TEST_CASE("cuda/parallel: a model that sees, on two devices, answers as Python does; one rank may end an answer for all") {
    if (!enough_devices(2)) return;
    const auto  folder = reference / "vlm/prism-dinosiglip+7b";
    const Json  row = read_json(folder / "expected.json").at("cases").at(0);
    const Image image = read_image(folder / "image.png");
    struct Said {
        Answer                    answer;
        std::vector<std::int32_t> cut_short{};
    };
    const auto said = of_ranks(2, Compute::exact, [&](Rank& rank, Device& be) {
        const auto vlm = from_pretrained(be, folder);
        Chat       chat{be, vlm, 400};
        chat.show(image);
        Said s{.answer = chat.ask(row.at("question").get<std::string>(), {.max_new_tokens = 16})};
        int  left = 3;
        s.cut_short = chat.session().generate(s.answer.input_ids, {.max_new_tokens = 16, .on_token = [&](std::int32_t) { return rank.all(!rank.first() || --left > 0); }}).ids;
        return s;
    });
    for (const Said& s : said) {
        CHECK(s.answer.output_ids == row.at("greedy_ids").get<std::vector<std::int32_t>>());
        CHECK(s.cut_short == std::vector(s.answer.output_ids.begin(), s.answer.output_ids.begin() + 3));
    }
}

TEST_CASE("cuda/parallel: sums are the same bits on all ranks, also replayed") {
    for (const std::size_t n : {1, 2, 3}) {
        if (!enough_devices(n)) continue;
        constexpr std::size_t count = 1003;
        const auto            sums = of_ranks(n, Compute::exact, [&](Rank& rank, Device& be) {
            const auto           mine = normal(count, static_cast<unsigned>(rank.number() + 1));
            const Buffer<device> b = be.allocate(count * sizeof(float));
            std::vector<float>   eager(count), replayed(count);
            be.upload(mine, {b.template as<float>(), {count}});
            be.driver().all_reduce(b.template as<float>(), count);
            be.download({b.template as<const float>(), {count}}, eager);
            be.upload(mine, {b.template as<float>(), {count}});
            auto recorded = be.record([&] { be.driver().all_reduce(b.template as<float>(), count); });
            be.replay(recorded);
            be.download({b.template as<const float>(), {count}}, replayed);
            return std::pair{eager, replayed};
        });
        std::vector<float> expected(count);
        for (std::size_t r = 0; r < n; ++r) {
            const auto part = normal(count, static_cast<unsigned>(r + 1));
            for (std::size_t i = 0; i < count; ++i) expected[i] += part[i];
        }
        for (const auto& [eager, replayed] : sums) {
            CHECK(relative_error(eager, expected) < 1e-6);
            CHECK(eager == sums[0].first);
            CHECK(replayed == eager);
        }
    }
}

TEST_CASE("cuda/parallel: a rank that fails stops the others, and what it threw comes out") {
    if (!enough_devices(2)) return;
    const auto failing = [](Rank& rank, Device& be) {
        if (!rank.first()) throw ConfigError{"key", "value", "another"};
        const Buffer<device> b = be.allocate(64 * sizeof(float));
        be.driver().clear(b.data(), b.bytes());
        for (;;) {
            be.driver().all_reduce(b.template as<float>(), 64);
            be.wait();
        }
        return 0;
    };
    CHECK_THROWS_AS(of_ranks(2, Compute::exact, failing), ConfigError);
    CHECK_THROWS_AS(of_ranks(2, Compute::exact, [](Rank& rank, Device&) {
        if (rank.first()) throw ConfigError{"key", "value", "another"};
        return rank.all();
    }), ConfigError);
}
#endif

TEST_CASE("cuda/parallel: replicas answer as one does, in the order of the questions") { expect_replicas_alike<Device>(); }
