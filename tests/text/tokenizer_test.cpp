#include "data.hpp"

#include "prism/text/tokenizer.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <filesystem>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using prism::Json;
using prism::Tokenizer;
using prism::test::Ids;

namespace {

constexpr prism::EncodeOptions reference{.parse_special = true};
constexpr prism::EncodeOptions reference_plain{.add_special = false, .parse_special = true};
constexpr prism::EncodeOptions ordinary_text{.add_special = false};

/// Every row of expected.json.
void check_rows(const Tokenizer& tokenizer, const Json& expected) {
    for (const Json& row : expected["cases"]) {
        const auto text = row["text"].get<std::string>();
        const auto ids = row["ids"].get<Ids>();
        INFO(text);
        CHECK(tokenizer.encode(text, reference) == ids);
        CHECK(tokenizer.encode(text, reference_plain) == row["ids_without_special"].get<Ids>());
        CHECK(tokenizer.decode(ids, {.skip_special = false}) == row["decoded"].get<std::string>());
        CHECK(tokenizer.decode(ids) == row["decoded_skip_special"].get<std::string>());
        if (row.contains("sentencepiece_ids"))
            CHECK(tokenizer.encode(text, ordinary_text) == row["sentencepiece_ids"].get<Ids>());
    }
}

std::filesystem::path committed(const char* name) {
    return std::filesystem::path(PRISM_TEST_DATA) / "reference/tokenizers" / name;
}

}  // namespace

TEST_CASE("text/tokenizer: ids and text are those of transformers, whichever files a folder holds") {
    for (const auto& folder : prism::test::reference_cases("tokenizers")) {
        CAPTURE(folder.string());
        const Json expected = prism::read_json(folder / "expected.json");
        const auto check = [&](Tokenizer tokenizer) {
            const auto pad = tokenizer.add_special("<PAD>", prism::SpecialRole::pad);
            CHECK(pad == expected["pad_token_id"].get<int>());
            CHECK(tokenizer.pad_id() == pad);
            CHECK(tokenizer.size() == expected["vocab_size"].get<std::size_t>());
            CHECK(tokenizer.add_special("<PAD>") == pad);
            check_rows(tokenizer, expected);
        };
        check(Tokenizer::open(folder));
        // The same folder without tokenizer.json is converted from the older files.
        const prism::test::TempFolder older;
        for (const auto& entry : std::filesystem::directory_iterator(folder))
            if (entry.path().filename() != "tokenizer.json") std::filesystem::copy(entry.path(), older.path());
        check(Tokenizer::open(older.path()));
        if (std::filesystem::exists(folder / "tokenizer.model")) check(Tokenizer::open(folder / "tokenizer.model"));
        check(Tokenizer::from(Tokenizer::open(folder).origin()));
    }
}

TEST_CASE("text/tokenizer: what a tokenizer was made of makes an equal one, tokens that were added included") {
    for (const std::filesystem::path& path : {committed("llama"), committed("phi"), committed("llama") / "tokenizer.model"}) {
        Tokenizer tokenizer = Tokenizer::open(path);
        tokenizer.add_special("<b>"), tokenizer.add_special("<a>", prism::SpecialRole::pad), tokenizer.add_special("<b>", prism::SpecialRole::eos);
        tokenizer.add_special("<b>", prism::SpecialRole::eos);  // a second time changes nothing
        CHECK(tokenizer.origin().added.size() == 3);
        const Tokenizer same = Tokenizer::from(tokenizer.origin());
        CHECK(same.size() == tokenizer.size());
        CHECK(same.pad_id() == tokenizer.pad_id());
        CHECK(same.eos_id() == tokenizer.eos_id());
        const std::string text = "one <a> two<b></s> three";
        const auto        ids = tokenizer.encode(text, {.parse_special = true});
        CHECK(same.encode(text, {.parse_special = true}) == ids);
        CHECK(same.decode(ids) == tokenizer.decode(ids));
    }
    CHECK_THROWS_AS(Tokenizer::from({}), prism::LoadError);
}

TEST_CASE("text/tokenizer: every part of tokenizer.json answers as tokenizers 0.19.1 does") {
    const Json cases = prism::read_json(prism::test::tokenizer_cases() / "cases.json");
    for (const Json& row : cases["tokenizers"]) {
        const auto      name = row["name"].get<std::string>();
        const Tokenizer tokenizer = Tokenizer::from_bytes(row["file"].dump(), name);
        CAPTURE(name);
        CHECK(tokenizer.size() == row["size"].get<std::size_t>());
        for (const Json& encode : row["encode"]) {
            const auto text = encode[0].get<std::string>();
            INFO(encode[0].dump(-1, ' ', true));
            CHECK(tokenizer.encode(text, reference) == encode[1].get<Ids>());
            CHECK(tokenizer.encode(text, reference_plain) == encode[2].get<Ids>());
            CHECK(tokenizer.encode(text, ordinary_text) == encode[encode.size() - 1].get<Ids>());
        }
        for (const Json& decode : row["decode"]) {
            INFO(decode[0].dump());
            CHECK(tokenizer.decode(decode[0].get<Ids>(), {.skip_special = false}) == decode[1].get<std::string>());
            CHECK(tokenizer.decode(decode[0].get<Ids>()) == decode[2].get<std::string>());
        }
    }
}

TEST_CASE("text/tokenizer: SentencePiece models with user-defined, unused and missing pieces match the library") {
    const Json cases = prism::read_json(prism::test::tokenizer_cases() / "sentencepiece.json");
    for (const Json& row : cases["models"]) {
        const auto      name = row["name"].get<std::string>();
        const Tokenizer tokenizer = Tokenizer::from_bytes(prism::test::unbase64(row["model"].get<std::string>()), name);
        CAPTURE(name);
        for (const Json& encode : row["encode"]) {
            INFO(encode[0].dump(-1, ' ', true));
            CHECK(tokenizer.encode(encode[0].get<std::string>(), ordinary_text) == encode[1].get<Ids>());
        }
    }
}

TEST_CASE("text/tokenizer: the Llama-2 vocabulary gives the ids and the text of transformers") {
    const auto tokenizer = prism::test::llama2();
    if (!tokenizer) return;
    CHECK(tokenizer->size() == 32001);
    CHECK(tokenizer->bos_id() == 1);
    CHECK(tokenizer->eos_id() == 2);
    CHECK(tokenizer->unk_id() == 0);
    CHECK(tokenizer->pad_id() == 32000);
    const Json vectors = prism::read_json(*prism::test::published_tokenizers() / "llama2-hf-vectors.json");
    for (const Json& row : vectors["encode"]) {
        const auto text = row["text"].get<std::string>();
        INFO(text);
        CHECK(tokenizer->encode(text, reference) == row["ids"].get<Ids>());
        CHECK(tokenizer->encode(text, reference_plain) == row["ids_no_special"].get<Ids>());
    }
    for (const Json& row : vectors["decode"]) {
        INFO(row.dump());
        CHECK(tokenizer->decode(row["ids"].get<Ids>(), {.skip_special = false}) == row["text"].get<std::string>());
        CHECK(tokenizer->decode(row["ids"].get<Ids>()) == row["text_skip_special"].get<std::string>());
    }
}

TEST_CASE("text/tokenizer: Prismatic's golden ids come out of the Llama-2 vocabulary") {
    const auto tokenizer = prism::test::llama2();
    if (!tokenizer) return;
    const std::vector<std::pair<std::string, Ids>> with_bos{
        {"Test 123", {1, 4321, 29871, 29896, 29906, 29941}},
        {"In: What is going on in this image?\nOut:",
         {1, 512, 29901, 1724, 338, 2675, 373, 297, 445, 1967, 29973, 13, 3744, 29901}},
        {"In: What is sitting in the coffee?\nOut:",
         {1, 512, 29901, 1724, 338, 16246, 297, 278, 26935, 29973, 13, 3744, 29901}},
        {"In: What animal is this?\nOut:", {1, 512, 29901, 1724, 13019, 338, 445, 29973, 13, 3744, 29901}},
        {"[INST] What is in this image? [/INST]",
         {1, 518, 25580, 29962, 1724, 338, 297, 445, 1967, 29973, 518, 29914, 25580, 29962}},
        {"select luxury furniture 3 - inch gel memory foam mattress topper",
         {1,   1831, 21684, 2857, 15252, 17252, 29871, 29941, 448, 297,
          305, 9127, 3370,  1701, 314,   1775,  509,   404,   304, 2496}},
        {"In: What action should the robot take to pick up the mug?\nOut:",
         {1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 5839, 701, 278, 286, 688, 29973, 13, 3744, 29901}}};
    for (const auto& [text, ids] : with_bos) CHECK(tokenizer->encode(text) == ids);
    const std::vector<std::pair<std::string, Ids>> without{
        {"Test 123", {4321, 29871, 29896, 29906, 29941}},
        {"In: What color is it?\nOut:", {512, 29901, 1724, 2927, 338, 372, 29973, 13, 3744, 29901}},
        {"A cat on a mat.", {319, 6635, 373, 263, 1775, 29889}},
        {"Black.", {6054, 29889}},
        {"USER: What color is it? ASSISTANT:",
         {3148, 1001, 29901, 1724, 2927, 338, 372, 29973, 319, 1799, 9047, 13566, 29901}},
        {"True", {5852}},
        {"False", {7700}},
        {"Yes", {3869}},
        {"No", {1939}}};
    for (const auto& [text, ids] : without) CHECK(tokenizer->encode(text, ordinary_text) == ids);
    const Ids letters{319, 350, 315, 360, 382, 383, 402, 379, 306, 435, 476,  365, 341,
                      405, 438, 349, 660, 390, 317, 323, 501, 478, 399, 1060, 612, 796};
    for (std::size_t i = 0; i < letters.size(); ++i)
        CHECK(tokenizer->encode(std::string(1, static_cast<char>('A' + i)), ordinary_text) == Ids{letters[i]});
}

TEST_CASE("text/tokenizer: vocabularies in GGUF give the ids of llama.cpp's test vectors") {
    const auto folder = prism::test::published_tokenizers();
    if (!folder) return;
    for (const std::string name : {"ggml-vocab-llama-spm.gguf", "ggml-vocab-mpt.gguf"}) {
        CAPTURE(name);
        const Tokenizer    tokenizer = Tokenizer::open(*folder / name);
        const std::string  texts = prism::read_file(*folder / (name + ".inp")), separator = "\n__ggml_vocab_test__\n";
        std::istringstream answers(prism::read_file(*folder / (name + ".out")));
        std::size_t        at = 0, rows = 0;
        for (std::string line; std::getline(answers, line); ++rows) {
            const std::size_t  end = texts.find(separator, at);
            const std::string  text = texts.substr(at, end - at);
            std::istringstream numbers(line);
            Ids                ids;
            for (std::int32_t id; numbers >> id;) ids.push_back(id);
            INFO(text);
            CHECK(tokenizer.encode(text, ordinary_text) == ids);
            CHECK(tokenizer.decode(ids) == text);
            at = end + separator.size();
        }
        CHECK(rows == 46);
    }
}

TEST_CASE("text/tokenizer: a vocabulary in GGUF gives the ids that its other files give") {
    const auto      folder = std::filesystem::path(PRISM_SOURCE_DIR) / "tests/fuzz/corpus/fuzz_tokenizer_gguf";
    const Tokenizer qwen2 = Tokenizer::open(folder / "qwen2.gguf"), other = prism::test::small_tokenizer("qwen2");
    const Json      cases = prism::read_json(prism::test::tokenizer_cases() / "cases.json");
    for (const Json& encode : cases["tokenizers"][0]["encode"]) {
        const auto text = encode[0].get<std::string>();
        if (text.find("  ") != std::string::npos) continue;  // a token of its own in the GGUF file
        INFO(encode[0].dump(-1, ' ', true));
        CHECK(qwen2.encode(text) == other.encode(text));
    }
    const auto spaces = qwen2.id("  ").value(), end = qwen2.id("<|endoftext|>").value();
    CHECK(qwen2.encode("  ") == Ids{spaces});
    CHECK(qwen2.decode(Ids{spaces, end}) == "  ");
    CHECK(qwen2.eos_id() == end);
    CHECK_FALSE(qwen2.bos_id());

    const Tokenizer llama = Tokenizer::open(folder / "llama.gguf");
    const auto      id = [&](const char* token) { return llama.id(token).value(); };
    // Not the piece of four characters: no merge leads to it, because neither of its halves is a piece.
    const auto space = id("\xe2\x96\x81");
    CHECK(llama.encode("the b") == Ids{1, space, id("th"), id("e"), space, id("<0x62>")});
    CHECK(llama.decode(llama.encode("the </s>")) == "the </s>");
    CHECK(llama.encode("</s>", reference) == Ids{1, 2});
}

TEST_CASE("text/tokenizer: settings beside files of slow classes have the effect that converting gives them") {
    const prism::test::TempFolder folder;
    const auto ids = [&](const std::string& settings) {
        folder.write("tokenizer_config.json", settings);
        return Tokenizer::open(folder.path()).encode("Hello", reference);
    };
    std::filesystem::copy(committed("llama") / "tokenizer.model", folder.path());
    const Ids hello = ids(R"({"tokenizer_class": "LlamaTokenizer"})");
    Ids       closed = hello;
    closed.push_back(2);
    CHECK(ids(R"({"add_eos_token": true})") == closed);  // no other class reads the file
    const Ids no_prefix = ids(R"({"tokenizer_class": "LlamaTokenizer", "add_prefix_space": false})");
    CHECK(no_prefix != hello);
    CHECK(ids(R"({"tokenizer_class": "LlamaTokenizer", "add_prefix_space": null})") == no_prefix);
    std::filesystem::copy(committed("llama") / "tokenizer.json", folder.path());
    for (const char* value : {"null", "false", "true"})  // does not reach the slow class
        CHECK(ids(R"({"tokenizer_class": "LlamaTokenizer", "add_prefix_space": )" + std::string(value) + "}") == hello);

    const prism::test::TempFolder words;
    for (const char* name : {"vocab.json", "merges.txt"}) std::filesystem::copy(committed("phi") / name, words.path());
    const auto text = [&](const std::string& settings) {
        words.write("tokenizer_config.json", settings);
        const Tokenizer tokenizer = Tokenizer::open(words.path());
        return tokenizer.decode(tokenizer.encode("a . b"));
    };
    CHECK(text(R"({"tokenizer_class": "CodeGenTokenizer"})") == "a. b");
    CHECK(text(R"({"tokenizer_class": "Qwen2Tokenizer"})") == "a . b");
    std::filesystem::copy(committed("phi") / "tokenizer.json", words.path());
    CHECK(text(R"({"tokenizer_class": "Qwen2Tokenizer"})") == "a. b");
}

TEST_CASE("text/tokenizer: settings beside a tokenizer have the effect that transformers gives them") {
    const prism::test::TempFolder folder;
    const auto ids = [&](const char* text) { return Tokenizer::open(folder.path()).encode(text, reference); };
    std::filesystem::copy(committed("llama") / "tokenizer.json", folder.path());
    const Ids hello = ids("Hello"), body(hello.begin() + 1, hello.end());
    CHECK(hello.front() == 1);

    folder.write("tokenizer_config.json",
                 R"({"tokenizer_class": "LlamaTokenizer", "add_bos_token": false, "add_eos_token": true})");
    Ids expected = body;
    expected.push_back(2);
    CHECK(ids("Hello") == expected);

    // Tokens that only the settings know are added after those of the file, in the order of their ids.
    const auto size = static_cast<std::int32_t>(Tokenizer::open(folder.path()).size());
    folder.write("tokenizer_config.json",
                 R"({"tokenizer_class": "LlamaTokenizerFast", "pad_token": {"content": "<pad>"},
        "added_tokens_decoder": {"900": {"content": "<b>", "special": true}, "7": {"content": "<a>", "special": false}}})");
    const Tokenizer added = Tokenizer::open(folder.path());
    CHECK(added.id("<a>") == size);
    CHECK(added.id("<b>") == size + 1);
    CHECK(added.pad_id() == size + 2);
    CHECK(added.decode(Ids{size, size + 1, size + 2}) == "<a>");
    CHECK(added.eos_id() == 2);

    folder.write("tokenizer_config.json", R"({"tokenizer_class": "PreTrainedTokenizerFast"})");
    folder.write("special_tokens_map.json", R"({"eos_token": "</s>", "additional_special_tokens": ["<extra>"]})");
    folder.write("added_tokens.json", R"({"<word>": 1000})");
    const Tokenizer mapped = Tokenizer::open(folder.path());
    CHECK(mapped.eos_id() == 2);
    CHECK_FALSE(mapped.bos_id());
    CHECK(mapped.id("<word>") == size);
    CHECK(mapped.id("<extra>") == size + 1);
    folder.write("tokenizer_config.json", R"({"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<more>"]})");
    CHECK(Tokenizer::open(folder.path()).id("<more>") == size + 1);  // before those of the map
    CHECK(Tokenizer::open(folder.path()).id("<extra>") == size + 2);
    CHECK(mapped.encode("Hello") == hello);  // the file's own template
    CHECK(mapped.decode(mapped.encode("a , b .")) ==
          "a, b.");  // clean-up is on unless the settings or the class say no
    CHECK(mapped.decode(mapped.encode("a , b ."), {.clean_up = false}) == "a , b .");
}

TEST_CASE("text/tokenizer: ill-formed text is repaired as in Python, or refused when asked to be strict") {
    const Tokenizer tokenizer = Tokenizer::open(committed("llama"));
    CHECK(tokenizer.encode("a\xff") == tokenizer.encode("a\xef\xbf\xbd"));
    CHECK(tokenizer.encode("\xe2\x96") == tokenizer.encode("\xef\xbf\xbd"));
    try {
        static_cast<void>(tokenizer.encode("ab\xff", {.strict = true}));
        FAIL("no error");
    } catch (const prism::FormatError& e) { CHECK(e.byte == 2); }
}

TEST_CASE("text/tokenizer: names, ids and roles can be looked up") {
    Tokenizer tokenizer = Tokenizer::open(committed("llama"));
    for (std::int32_t id = 0; id < static_cast<std::int32_t>(tokenizer.size()); ++id)
        CHECK(tokenizer.id(tokenizer.token(id)) == id);
    CHECK(tokenizer.token(-1).empty());
    CHECK(tokenizer.token(1 << 30).empty());
    CHECK_FALSE(tokenizer.id("no such token"));
    const Tokenizer before = tokenizer;
    const auto      id = tokenizer.add_special("<|go|>", prism::SpecialRole::eos);
    CHECK(tokenizer.eos_id() == id);
    CHECK(tokenizer.token(id) == "<|go|>");
    CHECK(before.eos_id() == 2);  // a copy keeps what it had
    CHECK(before.size() + 1 == tokenizer.size());
    CHECK_THROWS_AS(tokenizer.add_special(""), prism::ConfigError);
}

TEST_CASE("text/tokenizer: a long text without words takes no time") {
    const Tokenizer   tokenizer = Tokenizer::open(committed("llama"));
    const std::string text(1 << 20, 'a');
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
}

TEST_CASE("text/tokenizer: one tokenizer serves many threads") {
    const Tokenizer          tokenizer = Tokenizer::open(committed("llama"));
    const std::string        text = "the robot picks up the red block, and 12 more. \xf0\x9f\x98\x81";
    const Ids                ids = tokenizer.encode(text);
    std::vector<int>         equal(4);
    std::vector<std::thread> threads;
    for (int& result : equal)
        threads.emplace_back([&] {
            for (int i = 0; i < 200; ++i) result += tokenizer.encode(text) == ids && tokenizer.decode(ids) == text;
        });
    for (auto& thread : threads) thread.join();
    for (const int result : equal) CHECK(result == 200);
}
