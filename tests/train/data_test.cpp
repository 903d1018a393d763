// The data of training: random numbers and orders of the reference, annotation files good and bad, labels, batches, and
// the loader that makes them ahead.
#include "io/support.hpp"
#include "text/data.hpp"

#include "prism/backend/cpu/cpu.hpp"
#include "prism/train/data/batch.hpp"
#include "prism/train/data/conversations.hpp"
#include "prism/train/data/examples.hpp"
#include "prism/train/data/llava.hpp"
#include "prism/train/data/loader.hpp"
#include "prism/train/data/reference_random.hpp"
#include "prism/train/data/samplers.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

using namespace prism;
using prism::test::in_memory;
using prism::test::TempFolder;

namespace {

using Order = std::vector<std::size_t>;
const std::filesystem::path pictures = std::filesystem::path(PRISM_TEST_DATA) / "images";

Tokenizer llama_tokenizer() { return Tokenizer::open(std::filesystem::path(PRISM_TEST_DATA) / "reference/tokenizers/llama"); }
Tokenizer phi_tokenizer() { return Tokenizer::open(std::filesystem::path(PRISM_TEST_DATA) / "reference/tokenizers/phi"); }

ConversationFile conversations(const std::string& text, ConversationOptions options = {}) { return ConversationFile{in_memory(text, "chat.json"), options}; }

/// The error of a row, as field and problem.
std::string problem_of(const std::string& row, bool captions = false) {
    try {
        conversations("[{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": \"b\"}], \"image\": \"a.png\"}, " + row + "]", {.captions = captions});
    } catch (const ExampleError& e) {
        CHECK(e.file == "chat.json");
        CHECK(e.index == 1);
        return e.field + " " + e.problem;
    }
    return "no error";
}

/// A row of an annotation file.
std::string row(const std::string& image, std::size_t n_words) {
    std::string words;
    for (std::size_t i = 0; i < n_words; ++i) words += " w";
    return "{" + (image.empty() ? "" : "\"image\": \"" + image + "\", ") + "\"conversations\": [{\"from\": \"human\", \"value\": \"<image>\\nwhat?\"}, {\"from\": \"gpt\", \"value\": \"" + words + "\"}]}";
}

/// Annotations over the committed pictures: with and without one in turn.
struct Fixture {
    TempFolder               folder;
    std::vector<std::string> images{"rgb.jpg", "", "rgb8.png", "grey.jpg", "", "palette4.png", "420.jpg"};

    std::filesystem::path write() const {
        std::string text = "[";
        for (std::size_t i = 0; i < images.size(); ++i) text += (i ? ",\n" : "") + row(images[i], i);
        return folder.write("chat.json", text + "]");
    }
    LlavaExamples open(BadExamples bad = BadExamples::refuse) const {
        return {write(), pictures, llama_tokenizer(),
                {.format = prompt_format::pure(), .transforms = {{.size = 28}, {.stats = statistics::half, .strategy = Resize::letterbox, .size = 14}}, .bad = bad}};
    }
};

BatchPlan in_order(std::size_t n, std::size_t rows) {
    return [=](std::size_t k) {
        Order examples;
        for (std::size_t i = k * rows; i < std::min(n, (k + 1) * rows); ++i) examples.push_back(i);
        return examples;
    };
}

}  // namespace

TEST_CASE("train/data: random numbers are those of the reference's generator") {
    ReferenceRandom seven{7};
    for (const std::uint32_t expected : {327741615U, 976413892U, 3349725721U, 1369975286U, 1882953283U}) CHECK(seven.next() == expected);
    ReferenceRandom orders{7};
    CHECK(orders.permutation(5) == Order{0, 1, 3, 2, 4});
    CHECK(orders.permutation(4) == Order{3, 1, 0, 2});
    CHECK(orders.permutation(0).empty());
    ReferenceRandom uniform{2176};
    for (const float expected : {0.6529197692871094f, 0.054974913597106934f, 0.5741284489631653f}) CHECK(uniform.uniform(0, 1) == expected);
    CHECK(ReferenceRandom{(1ULL << 32) + 7}.next() == 327741615U);  // the low half of a seed
}

TEST_CASE("train/data: a fresh projector holds what the reference's does") {
    struct Golden {
        std::size_t        d_in, d_out;
        std::vector<float> weights, biases;
    };
    for (const Golden& golden : {Golden{1024, 4096, {0.019309740513563156f, 0.018344465643167496f, -0.018132802098989487f}, {-0.012944798916578293f, -0.010073129087686539f}},
                                 Golden{2176, 8704, {0.00655638100579381f, -0.01908029243350029f, 0.0031782309524714947f}, {-0.019032470881938934f, -0.004741237964481115f}},
                                 Golden{1152, 1, {0.0197208970785141f, 0.0077750468626618385f, 0.022736022248864174f}, {}},
                                 Golden{2048, 1, {0.01948011852800846f, 0.017411276698112488f, -0.02110392041504383f}, {}}}) {
        std::vector<float> weight(golden.d_in * golden.d_out), bias(golden.d_out);
        ReferenceRandom{golden.d_in}.linear(golden.d_in, weight, bias);
        CHECK(std::equal(golden.weights.begin(), golden.weights.end(), weight.begin()));
        CHECK(std::equal(golden.biases.begin(), golden.biases.end(), bias.begin()));
    }

    Cpu                cpu{{.threads = 1}};
    Projector<Cpu>     projector{ProjectorKind::fused_gelu_mlp, {.d_vision = 6, .d_model = 5}};
    ReferenceRandom    random{6};
    std::vector<float> weight(24 * 6), bias(24), weight2(5 * 24), bias2(5);
    random.linear(6, weight, bias), random.linear(24, weight2, bias2);
    initialise(cpu, projector);
    const auto& fused = std::get<FusedMlpProjector<Cpu>>(projector.kind);
    CHECK(std::ranges::equal(std::span(fused.fc1.bias.view().data(), 24), bias));
    CHECK(std::ranges::equal(std::span(fused.fc2.bias.view().data(), 5), bias2));
    std::vector<float> x(6, 0.0f), y(24);  // the columns of the matrix, whatever its layout in memory
    x[3] = 1;
    fused.fc1.forward(cpu, In<Cpu>{x.data(), {1, 6}}, Mat<Cpu>{y.data(), {1, 24}});
    for (std::size_t i = 0; i < 24; ++i) CHECK(y[i] == weight[i * 6 + 3] + bias[i]);
}

TEST_CASE("train/data: batches come in the reference's order") {
    std::vector<ExampleSize> sizes{{true, 20}, {true, 90}, {false, 40}, {true, 21}, {true, 22}, {false, 70}, {true, 91}, {true, 18}, {true, 89}, {false, 11}, {true, 19}, {true, 93}, {true, 88}, {true, 92}, {true, 17}};
    const auto order = [&](std::size_t epoch, std::size_t ranks, std::size_t rank) {
        return split_modality_order(sizes, {.global_batch = 4, .seed = 7, .epoch = epoch, .ranks = ranks, .rank = rank});
    };
    CHECK(order(0, 2, 0) == Order{11, 3, 5, 2, 8, 14, 6, 7});
    CHECK(order(0, 2, 1) == Order{13, 1, 5, 9, 12, 10, 4, 0});
    CHECK(order(1, 2, 0) == Order{11, 14, 5, 9, 6, 10, 13, 0});
    CHECK(order(1, 2, 1) == Order{3, 7, 2, 9, 1, 12, 8, 4});
    CHECK(order(0, 1, 0).size() == 16);

    // Fewer examples of a modality than half a batch: they are repeated until it is full.
    CHECK(split_modality_order(std::vector<ExampleSize>{{true, 1}, {false, 2}}, {.global_batch = 4}).size() == 8);
    CHECK_THROWS_AS(split_modality_order(std::vector<ExampleSize>{{false, 2}}, {.global_batch = 4}), ConfigError);
    CHECK_THROWS_AS(split_modality_order(sizes, {.global_batch = 4, .ranks = 3}), ConfigError);
    CHECK_THROWS_AS(split_modality_order(sizes, {.global_batch = 4, .ranks = 2, .rank = 2}), ConfigError);

    CHECK(shuffled_order(5, {.seed = 7}) == Order{0, 1, 3, 2, 4});
    CHECK(shuffled_order(5, {.global_batch = 2, .seed = 6, .epoch = 1, .ranks = 2}) == Order{0, 3, 4});
    CHECK(shuffled_order(5, {.global_batch = 2, .seed = 6, .epoch = 1, .ranks = 2, .rank = 1}) == Order{1, 2, 0});
}

TEST_CASE("train/data: annotation files are read row by row") {
    const auto file = conversations(R"( [ {"id": 3, "image": "a/b.png", "conversations": [{"from": "human", "value": "<image>\nIs {it}, \"}\\"}, {"from": "gpt", "value": " yes \u00e9  no"}]} ,
        {"conversations": [{"from": "human", "value": "hi"}], "other": {"x": [1, {}]}}, {"image": null, "conversations": [{"from": "human", "value": ""}]} ] )");
    REQUIRE(file.size() == 3);
    CHECK(file[0].picture == "a/b.png");
    REQUIRE(file[0].turns.size() == 2);
    CHECK(file[0].turns[0].text == "<image>\nIs {it}, \"}\\");
    CHECK((file[0].turns[1].role == Role::gpt));
    CHECK(file.sizes()[0].words == 4 + 3);
    CHECK(file.sizes()[0].picture);
    CHECK_FALSE(file.sizes()[1].picture);
    CHECK_FALSE(file[2].picture.has_value());
    CHECK(count_words(" a\tb\n\nc d ") == 4);
}

TEST_CASE("train/data: a bad row names file, index and field") {
    const std::string turns = R"("conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}])";
    CHECK(problem_of("{}") == "conversations is missing");
    CHECK(problem_of(R"({"conversations": 3})") == "conversations is no list");
    CHECK(problem_of(R"({"conversations": []})") == "conversations is empty");
    CHECK(problem_of(R"({"conversations": [3]})") == "conversations.0 is no object");
    CHECK(problem_of(R"({"conversations": [{"from": "gpt", "value": "a"}]})") == "conversations.0.from is 'gpt', where 'human' is due");
    CHECK(problem_of(R"({"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "a"}]})") == "conversations.1.from is 'human', where 'gpt' is due");
    CHECK(problem_of(R"({"conversations": [{"value": "a"}]})") == "conversations.0.from is missing");
    CHECK(problem_of(R"({"conversations": [{"from": "human", "value": 7}]})") == "conversations.0.value is no string");
    CHECK(problem_of("{" + turns + R"(, "image": 7})") == "image is no string");
    for (const char* path : {"/etc/passwd", "../a.png", "a/../../b.png", "", "a\\u0000b"})
        CHECK(problem_of("{" + turns + R"(, "image": ")" + path + "\"}") == "image is no path below the folder of pictures");
    CHECK(problem_of("{" + turns + R"(, "image": "a..b/c.png"})") == "no error");
    CHECK(problem_of("{" + turns + "}", true) == "image is missing");
    CHECK(problem_of(R"({"image": "a", "conversations": [{"from": "human", "value": "a"}]})", true) == "conversations has 1 turns, where a caption has 2");
    CHECK(problem_of(R"({"image": "a", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "<image>"}]})", true) == "conversations.1.value has <image> in a caption");

    const std::string mixed = "[{}, " + row("", 1) + ", {\"conversations\": []}, " + row("a.png", 2) + "]";
    const auto        kept = conversations(mixed, {.bad = BadExamples::skip});
    REQUIRE(kept.size() == 2);
    CHECK(kept.n_skipped() == 2);
    CHECK(kept.skipped()[1].index == 2);
    CHECK(kept.row(1) == 3);
    CHECK_THROWS_AS(conversations("[{}]", {.bad = BadExamples::skip}), ConfigError);

    for (const char* other : {"3", "-1.5e3", "null", "\"a, {\\\" ]\"", "[{}, [\"]\"]]"}) CHECK(problem_of(other) == "example is no object");
    for (const char* no_json : {"{\"a\" 3}", "{\"a\": \"\xff\"}", "{\"a\": 1, \"a\": 2}", "{\"a\": bad}", "[1, }]", "nothing"}) {
        CHECK(problem_of(no_json).starts_with("JSON is wrong at byte 1"));
        const auto others = conversations("[" + row("", 1) + ", " + no_json + " , " + row("a.png", 2) + "]", {.bad = BadExamples::skip});
        CHECK(others.size() == 2);
        REQUIRE(others.n_skipped() == 1);
        CHECK(others.skipped()[0].index == 1);
    }
    CHECK_THROWS_AS(conversations("[]"), ConfigError);
}

TEST_CASE("train/data: what is not JSON is refused wherever it stops") {
    const std::string good = "[" + row("a.png", 2) + ", " + row("", 1) + "]";
    CHECK(conversations(good).size() == 2);
    for (std::size_t n = 1; n < good.size(); ++n) CHECK_THROWS_AS(conversations(good.substr(0, n)), FormatError);
    for (const std::string& text : {good + "x", "{}" + good, "[" + row("", 1) + row("", 1) + "]", "[" + row("", 1) + ",]", std::string("[,]"), std::string("[{]"), std::string("[}]"),
                                    std::string("[3"), std::string("[\"3]"), std::string("[[]"), std::string("[3 4]"), std::string("{\"a\": []}")})
        CHECK_THROWS_AS(conversations(text, {.bad = BadExamples::skip}), FormatError);
    CHECK_THROWS_AS(ConversationFile::open("/nowhere/chat.json"), LoadError);
}

TEST_CASE("train/data: labels are the reference's") {
    const std::vector<Turn> turns{{Role::human, "<image>\nWhat animal is this?"}, {Role::gpt, " A cat on a mat.\n"}};
    if (const auto llama2 = prism::test::llama2()) {  // the published vocabulary
        const TokenRow r = conversation_row(*llama2, prompt_format::pure(), turns, true, 2048);
        CHECK(r.ids == test::Ids{1, 512, 29901, 1724, 13019, 338, 445, 29973, 13, 3744, 29901, 319, 6635, 373, 263, 1775, 29889, 2});
        CHECK(std::count(r.labels.begin(), r.labels.begin() + 11, ignored_label) == 11);
        CHECK(std::equal(r.labels.begin() + 11, r.labels.end(), r.ids.begin() + 11));
        const TokenRow c = caption_row(*llama2, prompt_format::pure(), "select luxury furniture 3 - inch gel memory foam mattress topper\n", 2048);
        CHECK(c.ids == test::Ids{1, 1831, 21684, 2857, 15252, 17252, 29871, 29941, 448, 297, 305, 9127, 3370, 1701, 314, 1775, 509, 404, 304, 2496, 2});
    }

    const Tokenizer           tokenizer = llama_tokenizer();
    const auto                ids_of = [](const Tokenizer& t, std::string_view text, bool special) { return t.encode(text, {.add_special = special, .parse_special = true}); };
    const std::vector<Turn>   three{{Role::human, "<image>\nWhat is it?"}, {Role::gpt, "A cat."}, {Role::human, " Why? "}, {Role::gpt, ""}};
    struct Expected {
        PromptFormat             format;
        std::vector<std::string> turns;
    };
    const std::string vicuna{system_text::vicuna}, chat = "[INST] <<SYS>\n" + std::string(system_text::llama2_chat) + "\n<</SYS>>\n\n";
    for (const Expected& e : {Expected{prompt_format::pure(), {"In: What is it?\nOut:", "A cat.</s>", "In: Why?\nOut:", " </s>"}},
                              Expected{prompt_format::vicuna_v15(), {vicuna + " USER: What is it? ASSISTANT:", "A cat.</s>", "USER: Why? ASSISTANT:", " </s>"}},
                              Expected{prompt_format::llama2_chat(), {chat + "What is it? [/INST]", "A cat.</s>", "[INST] Why? [/INST]", " </s>"}},
                              Expected{prompt_format::mistral_instruct(), {"[INST] What is it? [/INST]", "A cat.</s>", "[INST] Why? [/INST]", " </s>"}},
                              Expected{prompt_format::phi(), {"<|endoftext|>Input: What is it?\nOutput: ", "A cat.\n<|endoftext|>", "Input: Why?\nOutput: ", " \n<|endoftext|>"}}}) {
        const Tokenizer t = e.format.turns_stripped ? tokenizer : phi_tokenizer();
        TokenRow        expected;
        for (std::size_t k = 0; k < 4; ++k) {
            const auto ids = ids_of(t, e.turns[k], k == 0);
            expected.ids.insert(expected.ids.end(), ids.begin(), ids.end());
            for (const std::int32_t id : ids) expected.labels.push_back(k % 2 ? id : ignored_label);
        }
        for (const bool picture : {false, true}) {
            const TokenRow r = conversation_row(t, e.format, three, picture, 2048);
            CHECK(r.ids == expected.ids);
            CHECK(r.labels == expected.labels);  // the first turn is human, so its first label is ignored either way
        }
        const TokenRow cut = conversation_row(t, e.format, three, true, 7);
        CHECK(cut.ids == test::Ids(expected.ids.begin(), expected.ids.begin() + 7));
        CHECK(cut.labels.size() == 7);

        const TokenRow caption = caption_row(t, e.format, "  a cat \n", 2048);
        CHECK(caption.ids == ids_of(t, e.format.turns_stripped ? "a cat</s>" : "a cat<|endoftext|>", true));
        CHECK(caption.labels[0] == ignored_label);
        CHECK(std::equal(caption.labels.begin() + 1, caption.labels.end(), caption.ids.begin() + 1));
    }
}

TEST_CASE("train/data: rows, batches and orders are those that the reference's own code made") {
    const auto             folder = std::filesystem::path(PRISM_TEST_DATA) / "training";  // see make_rows.py there
    const Json             golden = read_json(folder / "rows.json");
    const auto             ids = [](const Json& list) { return list.get<test::Ids>(); };
    const ConversationFile rows = conversations(golden["conversations"].dump()), captions = conversations(golden["captions"].dump(), {.captions = true});
    for (std::size_t i = 0; i < rows.size(); ++i) CHECK(rows.sizes()[i].words == golden["words"][i]);
    for (const auto& [backbone, expected] : golden["rows"].items()) {
        const std::string& id = backbone;
        CAPTURE(id);
        const PromptFormat format = prompt_builder_for(id).format();
        Tokenizer          tokenizer = id == "phi-2-3b" ? phi_tokenizer() : llama_tokenizer();
        tokenizer.add_special(id == "phi-2-3b" ? "<|pad|>" : "<PAD>", SpecialRole::pad);
        const auto limit = golden["max_tokens"][id].get<std::size_t>();
        Batch      batch;
        for (std::size_t i = 0; i < rows.size(); ++i) {
            const Conversation c = rows[i];
            const TokenRow     row = conversation_row(tokenizer, format, c.turns, c.picture.has_value(), limit);
            CHECK(row.ids == ids(expected[i]["ids"]));
            CHECK(row.labels == ids(expected[i]["labels"]));
            batch.add(row, i, c.picture.has_value());
        }
        for (std::size_t i = 0; i < captions.size(); ++i) {
            const TokenRow row = caption_row(tokenizer, format, captions[i].turns[1].text, limit);
            CHECK(row.ids == ids(golden["caption_rows"][id][i]["ids"]));
            CHECK(row.labels == ids(golden["caption_rows"][id][i]["labels"]));
        }
        if (!golden["padded"].contains(id)) continue;
        const Json&       collated = golden["padded"][id];
        const PaddedBatch p = padded(batch, collated["pad_id"].get<std::int32_t>(), limit);
        CHECK(tokenizer.pad_id() == collated["pad_id"].get<std::int32_t>());
        CHECK(p.ids == ids(collated["ids"]));
        CHECK(p.labels == ids(collated["labels"]));
        CHECK(std::ranges::equal(p.attention_mask, ids(collated["mask"])));
        CHECK(batch.picture_rows == collated["pictures"].get<Order>());
    }
    for (const Json& order : golden["orders"]) {
        std::vector<ExampleSize> sizes;
        for (std::size_t i = 0; i < order["words"].size(); ++i) sizes.push_back({order["pictures"][i].get<bool>(), order["words"][i].get<std::size_t>()});
        const std::size_t ranks = order["split"].size();
        for (std::size_t r = 0; r < ranks; ++r) {
            const SamplerOptions options{.global_batch = order["global_batch"].get<std::size_t>(), .seed = 7, .epoch = order["epoch"].get<std::size_t>(), .ranks = ranks, .rank = r};
            CHECK(split_modality_order(sizes, options) == order["split"][r].get<Order>());
            CHECK(shuffled_order(sizes.size(), options) == order["shuffled"][r].get<Order>());
        }
    }
}

TEST_CASE("train/data: a batch is ragged, and padded as the reference pads it") {
    Batch batch;
    batch.add({{1, 5, 6, 2}, {-100, -100, 6, 2}}, 17, true);
    batch.add({{1, 9}, {-100, 9}}, 3, false);
    CHECK(batch.n_rows() == 2);
    CHECK(batch.n_supervised() == 3);
    Batch first_only;  // which nothing predicts
    first_only.add({{1, 9}, {1, -100}}, 0, false);
    CHECK(first_only.n_supervised() == 0);
    CHECK(batch.picture_rows == Order{0});
    CHECK(std::ranges::equal(batch.row_ids(1), std::vector<std::int32_t>{1, 9}));
    const PaddedBatch p = padded(batch, 0, 2048);
    CHECK(p.ids == test::Ids{1, 5, 6, 2, 1, 9, 0, 0});
    CHECK(p.labels == test::Ids{-100, -100, 6, 2, -100, 9, -100, -100});
    CHECK(p.attention_mask == std::vector<std::uint8_t>{1, 1, 1, 1, 1, 1, 0, 0});
    CHECK(padded(batch, 0, 3).ids == test::Ids{1, 5, 6, 1, 9, 0});
}

TEST_CASE("train/data: the loader gives the same batches with any number of threads") {
    const Fixture            fixture;
    const LlavaExamples      examples = fixture.open();
    std::vector<TowerPixels> towers;
    std::vector<float>       a(3 * 28 * 28), b(3 * 14 * 14);
    towers.push_back({examples.transforms()[0], {a.data(), {3, 28, 28}}}), towers.push_back({examples.transforms()[1], {b.data(), {3, 14, 14}}});
    PixelReader reader{{.threads = 1}};
    for (const std::size_t threads : {1U, 2U, 5U}) {
        const Order order{6, 1, 3, 2, 0, 4, 5, 6, 6, 3};
        Loader      loader{examples, [&](std::size_t k) { return Order(order.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(10, 4 * k)), order.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(10, 4 * k + 4))); },
                           {.threads = threads}};
        std::size_t seen = 0;
        while (const Batch* batch = loader.next()) {
            REQUIRE(batch->pixels.size() == 2);
            std::size_t picture = 0;
            for (std::size_t r = 0; r < batch->n_rows(); ++r, ++seen) {
                const std::size_t i = order[seen];
                CHECK(batch->examples[r] == i);
                CHECK(std::ranges::equal(batch->row_ids(r), examples.tokens(i).ids));
                CHECK(std::ranges::equal(batch->row_labels(r), examples.tokens(i).labels));
                if (!examples.sizes()[i].picture) continue;
                REQUIRE(batch->picture_rows.at(picture) == r);
                examples.read_picture(i, reader, towers);
                CHECK(std::equal(a.begin(), a.end(), batch->pixels[0].begin() + static_cast<std::ptrdiff_t>(picture * a.size())));
                CHECK(std::equal(b.begin(), b.end(), batch->pixels[1].begin() + static_cast<std::ptrdiff_t>(picture * b.size())));
                ++picture;
            }
            CHECK(batch->n_pictures() == picture);
            CHECK(batch->pixels[0].size() == picture * a.size());
        }
        CHECK(seen == order.size());
        CHECK(loader.next() == nullptr);
        CHECK(loader.counts().batches == 3);
    }
}

TEST_CASE("train/data: compute that takes longer than data waits for the first batch only, and the loader counts it") {
    const Fixture       fixture;
    const LlavaExamples examples = fixture.open();
    Loader              loader{examples, in_order(7, 1), {.threads = 2, .ahead = 3}};
    while (loader.next()) std::this_thread::sleep_for(std::chrono::milliseconds(60));
    CHECK(loader.counts().batches == 7);
    CHECK(loader.counts().waits <= 2);  // on a busy machine one more may come late

    Loader from_the_middle{examples, in_order(7, 2), {}, 2};
    CHECK(from_the_middle.next()->examples == Order{4, 5});
}

TEST_CASE("train/data: what a worker cannot read reaches the consumer with file and index, or is left out and counted") {
    Fixture           fixture;
    const std::string broken = read_file(pictures / "rgb.jpg").substr(0, 300);
    fixture.folder.write("broken.jpg", broken);
    for (const char* bad : {"missing.jpg", "make_images.py"}) {
        fixture.images[3] = bad;
        const LlavaExamples examples = fixture.open();
        Loader              loader{examples, in_order(7, 2)};
        CHECK(loader.next()->n_rows() == 2);
        for (int again = 0; again < 2; ++again) {
            try {
                loader.next();
                FAIL("no error");
            } catch (const ExampleError& e) {
                CHECK(e.index == 3);
                CHECK(e.field == "image");
                CHECK(e.file.ends_with("chat.json"));
                CHECK(e.problem.find(bad) != std::string::npos);
            }
        }
        Loader       skipping{examples, in_order(7, 2), {.bad = BadExamples::skip}};
        const Batch* batch = skipping.next();
        batch = skipping.next();
        CHECK(batch->examples == Order{2});
        CHECK(skipping.next()->examples == Order{4, 5});
        CHECK(skipping.counts().skipped == 1);
        CHECK(skipping.next()->examples == Order{6});

        Loader alone{examples, [](std::size_t) { return Order{3}; }, {.bad = BadExamples::skip}};
        batch = alone.next();
        REQUIRE(batch != nullptr);
        CHECK(batch->n_rows() == 0);
        CHECK(batch->pixels[0].empty());
        CHECK(alone.next()->n_rows() == 0);
        CHECK(alone.counts().skipped == 2);
        CHECK(alone.counts().first_skipped.find("example 3: 'image' ") != std::string::npos);
    }

    const auto          annotations = fixture.folder.write("one.json", "[" + row("broken.jpg", 1) + "]");
    const LlavaExamples cut{annotations, fixture.folder.path(), llama_tokenizer(), {.format = prompt_format::pure(), .transforms = {{.size = 14}}}};
    Loader              loader{cut, in_order(1, 1)};
    CHECK_THROWS_AS(loader.next(), ExampleError);

    Loader lost{cut, [](std::size_t) -> Order { throw Error("no plan"); }};
    CHECK_THROWS_WITH_AS(lost.next(), "no plan", Error);
    Loader outside{cut, [](std::size_t) { return Order{1}; }};
    CHECK_THROWS_AS(outside.next(), ConfigError);
}

TEST_CASE("train/data: rows that teach nothing are no batch, and harmless beside others") {
    const Fixture       fixture;
    const LlavaExamples examples{fixture.write(), pictures, llama_tokenizer(), {.format = prompt_format::pure(), .transforms = {{.size = 14}}, .max_tokens = 5}};  // before any answer
    Loader              loader{examples, in_order(7, 2)};
    for (int again = 0; again < 2; ++again) {
        try {
            loader.next();
            FAIL("no error");
        } catch (const ExampleError& e) {
            CHECK(e.file == examples.name(0) + "; " + examples.name(1));
            CHECK(e.field == "conversations");
        }
    }
    Loader skipping{examples, in_order(7, 2), {.bad = BadExamples::skip}};
    for (int k = 0; k < 4; ++k) CHECK(skipping.next()->n_rows() == 0);
    CHECK(skipping.next() == nullptr);
    CHECK(skipping.counts().skipped == 7);
    CHECK(skipping.counts().first_skipped.starts_with(examples.name(0) + "; "));

    const auto          annotations = fixture.folder.write("mixed.json", R"([{"conversations": [{"from": "human", "value": "a"}]}, )" + row("", 1) + "]");
    const LlavaExamples mixed{annotations, pictures, llama_tokenizer(), {.format = prompt_format::pure(), .transforms = {{.size = 14}}}};
    Loader              both{mixed, in_order(2, 2)};
    CHECK(both.next()->n_rows() == 2);
}

TEST_CASE("train/data: a loader stops at any moment") {
    const Fixture       fixture;
    const LlavaExamples examples = fixture.open();
    for (int i = 0; i < 20; ++i) {
        Loader loader{examples, [](std::size_t k) { return Order{k % 7, (k + 1) % 7}; }, {.threads = 3, .ahead = 4}};
        for (int n = 0; n < i % 4; ++n) CHECK(loader.next() != nullptr);
    }
}
