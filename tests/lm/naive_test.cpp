// Decoders against a plain one in f64 that knows nothing of caches, chunks, batches or tiles.
#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/lm/language_model.hpp"
#include "support/random_weights.hpp"

#include <doctest/doctest.h>

#include <functional>
#include <map>

using namespace prism;
using namespace prism::test;

namespace {

using Rows = std::vector<std::vector<double>>;

/// The decoders of Llama, Mistral, Qwen2 and Phi, one token after another, from the tensors of their files.
class Naive {
public:
    Naive(const LanguageModelConfig& config, const std::vector<TensorInfo>& tensors) : config_(config) {
        for (const TensorInfo& t : tensors) values_[t.name] = to_floats(t);
    }

    /// Logits after each of the ids.
    Rows logits(const std::vector<std::int32_t>& ids) {
        return std::visit([&](const auto& c) { return run(c, ids); }, config_);
    }

private:
    template <class C>
    Rows run(const C& c, const std::vector<std::int32_t>& ids) {
        constexpr bool phi = std::is_same_v<C, PhiConfig>;
        const auto&    table = values_.at("model.embed_tokens.weight");
        Rows           x;
        for (std::int32_t id : ids) {
            const auto* row = table.data() + static_cast<std::size_t>(id) * c.d_model;
            x.emplace_back(row, row + c.d_model);
        }
        for (std::size_t layer = 0; layer < c.n_layers; ++layer) {
            const std::string at = "model.layers." + std::to_string(layer) + ".";
            if constexpr (phi) {
                const Rows h = norm(x, at + "input_layernorm", c.norm_eps, true);
                Rows       mlp = linear(h, at + "mlp.fc1");
                each(mlp, [&](double z) { return activation(c.act, z); });
                add(x, attend(c, h, at + "self_attn.", "dense", c.rotary_dim, 0));
                add(x, linear(mlp, at + "mlp.fc2"));
            } else {
                add(x, attend(c, norm(x, at + "input_layernorm", c.norm_eps, false), at + "self_attn.", "o_proj", c.head_dim, c.window));
                const Rows h = norm(x, at + "post_attention_layernorm", c.norm_eps, false), up = linear(h, at + "mlp.up_proj");
                Rows       gate = linear(h, at + "mlp.gate_proj");
                for (std::size_t i = 0; i < gate.size(); ++i)
                    for (std::size_t j = 0; j < gate[i].size(); ++j) gate[i][j] = activation(Activation::silu, gate[i][j]) * up[i][j];
                add(x, linear(gate, at + "mlp.down_proj"));
            }
        }
        x = norm(x, phi ? "model.final_layernorm" : "model.norm", c.norm_eps, phi);
        return linear(x, c.tied_embeddings ? "model.embed_tokens" : "lm_head", c.tied_embeddings ? "lm_head.bias" : "");
    }

    Rows linear(const Rows& x, const std::string& name, const std::string& bias_name = {}) {
        const auto&       w = values_.at(name + ".weight");
        const auto        bias = values_.find(bias_name.empty() ? name + ".bias" : bias_name);
        const std::size_t d = x[0].size(), n = w.size() / d;
        Rows              y;
        for (const auto& row : x) {
            y.emplace_back(n);
            for (std::size_t j = 0; j < n; ++j) {
                y.back()[j] = bias == values_.end() ? 0 : static_cast<double>(bias->second[j]);
                for (std::size_t p = 0; p < d; ++p) y.back()[j] += row[p] * static_cast<double>(w[j * d + p]);
            }
        }
        return y;
    }

    Rows norm(Rows x, const std::string& name, float eps, bool centred) {
        const auto& w = values_.at(name + ".weight");
        for (auto& row : x) {
            double mean = 0, square = 0;
            for (double v : row) mean += v / static_cast<double>(row.size());
            if (!centred) mean = 0;
            for (double v : row) square += (v - mean) * (v - mean) / static_cast<double>(row.size());
            for (std::size_t j = 0; j < row.size(); ++j) {
                row[j] = (row[j] - mean) / std::sqrt(square + static_cast<double>(eps)) * static_cast<double>(w[j]);
                if (centred) row[j] += static_cast<double>(values_.at(name + ".bias")[j]);
            }
        }
        return x;
    }

    template <class C>
    Rows attend(const C& c, const Rows& x, const std::string& at, const std::string& out, std::size_t rotary, std::size_t window) {
        Rows q = linear(x, at + "q_proj"), k = linear(x, at + "k_proj"), y = q;
        const Rows v = linear(x, at + "v_proj");
        const auto rotate = [&](Rows& rows, std::size_t n_heads) {
            for (std::size_t p = 0; p < rows.size(); ++p)
                for (std::size_t h = 0; h < n_heads; ++h)
                    for (std::size_t j = 0; j < rotary / 2; ++j) {
                        const double angle = static_cast<double>(p) * std::pow(static_cast<double>(c.rope_theta), -2.0 * static_cast<double>(j) / static_cast<double>(rotary));
                        double &a = rows[p][h * c.head_dim + j], &b = rows[p][h * c.head_dim + rotary / 2 + j];
                        const double turned = a * std::cos(angle) - b * std::sin(angle);
                        b = b * std::cos(angle) + a * std::sin(angle), a = turned;
                    }
        };
        rotate(q, c.n_heads), rotate(k, c.n_kv_heads);
        for (std::size_t i = 0; i < x.size(); ++i)
            for (std::size_t h = 0; h < c.n_heads; ++h) {
                const std::size_t   to = h * c.head_dim, from = h / (c.n_heads / c.n_kv_heads) * c.head_dim;
                const std::size_t   first = window && i + 1 > window ? i + 1 - window : 0;
                std::vector<double> p(i + 1);
                double              total = 0;
                for (std::size_t j = first; j <= i; ++j) {
                    for (std::size_t d = 0; d < c.head_dim; ++d) p[j] += q[i][to + d] * k[j][from + d];
                    total += p[j] = std::exp(p[j] / std::sqrt(static_cast<double>(c.head_dim)));
                }
                for (std::size_t d = 0; d < c.head_dim; ++d) {
                    y[i][to + d] = 0;
                    for (std::size_t j = first; j <= i; ++j) y[i][to + d] += p[j] / total * v[j][from + d];
                }
            }
        return linear(y, at + out);
    }

    template <class Fn>
    static void each(Rows& x, Fn&& f) {
        for (auto& row : x)
            for (double& v : row) v = f(v);
    }
    static void add(Rows& x, const Rows& h) {
        for (std::size_t i = 0; i < x.size(); ++i)
            for (std::size_t j = 0; j < x[i].size(); ++j) x[i][j] += h[i][j];
    }

    LanguageModelConfig                       config_;
    std::map<std::string, std::vector<float>> values_;
};

struct Kind {
    std::string         name;
    LanguageModelConfig config;
};
const Kind kinds[]{
    {"llama", LlamaConfig{.vocab_size = 37, .d_model = 24, .d_ff = 50, .n_layers = 3, .n_heads = 3, .n_kv_heads = 3, .head_dim = 8}},
    {"grouped heads, tied head", LlamaConfig{.vocab_size = 33, .d_model = 32, .d_ff = 40, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8, .tied_embeddings = true}},
    {"mistral's window", LlamaConfig{.vocab_size = 37, .d_model = 24, .d_ff = 50, .n_layers = 2, .n_heads = 6, .n_kv_heads = 2, .head_dim = 4, .window = 5}},
    {"qwen2's biases, heads wider than the model", LlamaConfig{.vocab_size = 40, .d_model = 16, .d_ff = 30, .n_layers = 2, .n_heads = 4, .n_kv_heads = 1, .head_dim = 6, .rope_theta = 1e6f, .qkv_bias = true}},
    {"phi, part of each head rotates", PhiConfig{.vocab_size = 35, .d_model = 40, .d_ff = 64, .n_layers = 3, .n_heads = 2, .n_kv_heads = 2, .head_dim = 20, .rotary_dim = 8}},
    {"phi, tied head, grouped heads, erf", PhiConfig{.vocab_size = 35, .d_model = 24, .d_ff = 30, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 6, .rotary_dim = 2, .act = Activation::gelu_erf, .tied_embeddings = true}},
};

/// A decoder with a workspace for up to `most` rows at once.
struct Reader {
    Cpu&                      be;
    const LanguageModel<Cpu>& llm;
    Workspace<Cpu>            ws;

    Reader(Cpu& backend, const LanguageModel<Cpu>& model, std::size_t most)
        : be(backend), llm(model), ws(be, dry_run([&, twin = dry_twin(model)](Dry& dry, Workspace<Dry>& dry_ws) {
              auto               cache = twin.make_cache(dry, most);
              const Segment<Dry> batch[]{{&cache, most}};
              twin.forward(dry, dry_ws, batch, {nullptr, {most, twin.d_model()}});
          }).workspace_bytes) {}

    /// Logits of the rows of several sequences, read together.
    Array read(std::vector<std::pair<KvCache<Cpu>*, std::vector<std::int32_t>>> sequences) {
        std::vector<Segment<Cpu>> batch;
        std::vector<std::int32_t> ids;
        for (auto& [cache, part] : sequences) batch.push_back({cache, part.size()}), ids.insert(ids.end(), part.begin(), part.end());
        Array x{ids.size(), llm.d_model()}, logits{ids.size(), llm.vocab_size()};
        llm.embed(be, ids, x.mat());
        llm.forward(be, ws, batch, x.mat());
        llm.logits(be, x.in(), logits.mat());
        return logits;
    }
};

std::vector<std::int32_t> some_ids(std::size_t n, unsigned seed, std::size_t vocab) {
    std::mt19937              random{seed};
    std::vector<std::int32_t> ids(n);
    for (auto& id : ids) id = static_cast<std::int32_t>(random() % vocab);
    return ids;
}

/// f32 against f64 through a few layers: a few hundred roundings of values of order one, most of which average out.
constexpr double tolerance = 1000 * u;

double difference(const Array& found, const Rows& expected, std::size_t first = 0) {
    double most = 0, largest = 1e-30;
    for (std::size_t i = 0; i < found.rows(); ++i)
        for (std::size_t j = 0; j < found.cols(); ++j) {
            most = std::max(most, std::abs(static_cast<double>(found(i, j)) - expected[first + i][j]));
            largest = std::max(largest, std::abs(expected[first + i][j]));
        }
    return most / largest;
}

}  // namespace

TEST_CASE("lm: every kind of decoder gives the logits of a plain one in f64, in one piece, in chunks and token by token") {
    for (const Kind& kind : kinds)
        for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
            LanguageModel<Cpu> llm{kind.config};
            const auto         tensors = random_tensors(llm, 7, dtype);
            const auto         ids = some_ids(23, 1, llm.vocab_size());
            const Rows         expected = Naive{kind.config, tensors}.logits(ids);
            for (Isa isa : isas()) {
                CAPTURE(to_string(isa));
                Cpu be{{.threads = 2, .isa = isa}};
                bind_all(be, llm, tensors);
                Reader reader{be, llm, ids.size()};
                for (std::size_t chunk : {std::size_t{23}, std::size_t{10}, std::size_t{5}, std::size_t{1}}) {
                    auto   cache = llm.make_cache(be, ids.size());
                    double worst_chunk = 0;
                    for (std::size_t at = 0; at < ids.size(); at += chunk) {
                        const std::size_t n = std::min(chunk, ids.size() - at);
                        const auto        first = ids.begin() + static_cast<std::ptrdiff_t>(at);
                        worst_chunk = std::max(worst_chunk, difference(reader.read({{&cache, {first, first + static_cast<std::ptrdiff_t>(n)}}}), expected, at));
                    }
                    CHECK_MESSAGE(worst_chunk < tolerance, kind.name << ", chunks of " << chunk);
                    CHECK(cache.length() == ids.size());
                }
            }
        }
}

TEST_CASE("lm: a cache in bf16 changes scores by what its rounding allows") {
    for (const Kind& kind : kinds) {
        Cpu                be{{.threads = 2}};
        LanguageModel<Cpu> llm{kind.config};
        const auto         tensors = random_tensors(llm, 7);
        const auto         ids = some_ids(23, 1, llm.vocab_size());
        bind_all(be, llm, tensors);
        Reader       reader{be, llm, ids.size()};
        auto         cache = llm.make_cache(be, ids.size(), Dtype::bf16);
        const double error = difference(reader.read({{&cache, ids}}), Naive{kind.config, tensors}.logits(ids));
        CHECK_MESSAGE(error < 0x1p-6, kind.name);  // values to 2^-9 of themselves, through a few layers
        CHECK_MESSAGE(error > 1e-6, kind.name);    // it is bf16 indeed
    }
}

TEST_CASE("lm: sequences of different lengths read together do not see each other") {
    for (const Kind& kind : kinds) {
        Cpu                be{{.threads = 2}};
        LanguageModel<Cpu> llm{kind.config};
        const auto         tensors = random_tensors(llm, 7);
        bind_all(be, llm, tensors);
        Reader     reader{be, llm, 40};
        const auto a = some_ids(9, 1, llm.vocab_size()), b = some_ids(17, 2, llm.vocab_size()), c = some_ids(1, 3, llm.vocab_size());
        auto       cache_a = llm.make_cache(be, 12), cache_b = llm.make_cache(be, 20), cache_c = llm.make_cache(be, 5);
        reader.read({{&cache_b, {b.begin(), b.begin() + 12}}});
        const Array found = reader.read({{&cache_a, a}, {&cache_b, {b.begin() + 12, b.end()}}, {&cache_c, c}});
        Naive       naive{kind.config, tensors};
        Rows        expected = naive.logits(a);
        const Rows  of_b = naive.logits(b), of_c = naive.logits(c);
        expected.insert(expected.end(), of_b.begin() + 12, of_b.end());
        expected.insert(expected.end(), of_c.begin(), of_c.end());
        CHECK_MESSAGE(difference(found, expected) < tolerance, kind.name);
    }
}

TEST_CASE("lm: a stretch of the vocabulary gets the scores that it has in the whole") {
    for (const Kind& kind : kinds) {
        Cpu                be{{.threads = 2}};
        LanguageModel<Cpu> llm{kind.config};
        randomise(be, llm, 7);
        const Array hidden = Array::random(3, llm.d_model(), 1);
        Array       whole{3, llm.vocab_size()}, part{3, 11};
        llm.logits(be, hidden.in(), whole.mat());
        llm.logits(be, hidden.in(), 13, 11, part.mat());
        bool same = true;
        for (std::size_t i = 0; i < 3; ++i)
            for (std::size_t j = 0; j < 11; ++j) same = same && part(i, j) == whole(i, 13 + j);
        CHECK_MESSAGE(same, kind.name);
        CHECK_THROWS_AS(llm.logits(be, hidden.in(), llm.vocab_size() - 10, 11, part.mat()), ShapeError);
    }
}

TEST_CASE("lm: a cache that is too small, rows without a segment and unloaded weights are errors before any work") {
    Cpu                be{{.threads = 1}};
    LanguageModel<Cpu> llm{kinds[0].config};
    Reader             reader{be, llm, 8};
    auto               cache = llm.make_cache(be, 4);
    CHECK_THROWS_WITH_AS(reader.read({{&cache, {1, 2}}}), doctest::Contains("has no values yet: load the model first"), Error);
    CHECK(cache.length() == 0);
    randomise(be, llm, 1);
    reader.read({{&cache, {1, 2}}});
    CHECK_THROWS_WITH_AS(reader.read({{&cache, {3, 4, 5}}}), doctest::Contains("'tokens' is 5; allowed: at most 4 in this cache"), ConfigError);
    CHECK(cache.length() == 2);
    const Segment<Cpu> batch[]{{&cache, 2}};
    Array              x{3, llm.d_model()};
    CHECK_THROWS_AS(llm.forward(be, reader.ws, batch, x.mat()), ShapeError);
    const std::int32_t beyond[]{37};
    CHECK_THROWS_WITH_AS(llm.embed(be, beyond, x.mat().rows(0, 1)), doctest::Contains("gather: ids: expected 0 ... 36, found 37"), ShapeError);
}
