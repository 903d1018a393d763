// `prism shapes` as a user meets it.
#include "program/support.hpp"

#include "prism/image/read.hpp"

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

using namespace prism;
using namespace prism::test;

TEST_CASE("program/shapes: a picture, what is in it, and its questions, the same each time") {
    const Scratch scratch;
    const Ran     ran = run({"shapes", "--seed", "7", "--out", scratch.path("a.png"), "--describe", "--questions"});
    CHECK(ran.status == 0);
    CHECK(ran.out.find("caption: ") != std::string::npos);
    const Image picture = read_image(scratch.path("a.png"));
    CHECK(ran.err == scratch.path("a.png") + ": a scene, " + std::to_string(picture.width()) + " x " + std::to_string(picture.height()) + " pixels\n");
    const Json  json = run({"shapes", "--seed", "7", "--json", "--out", scratch.path("b.png")}).json();
    CHECK(picture.pixels == read_image(scratch.path("b.png")).pixels);
    CHECK(json.at("width") == picture.width());
    CHECK(json.at("height") == picture.height());
    REQUIRE(!json.at("questions").empty());
    for (const char* field : {"type", "question", "answer"}) CHECK(json["questions"][0].contains(field));
    const Ran piped = run({"shapes", "--seed", "7", "--out", "-"});
    CHECK(picture.pixels == read_image(scratch.write("c.png", piped.out)).pixels);
    CHECK(run({"shapes", "--seed", "8", "--json"}).json() != json);
    const Ran sheet = run({"shapes", "--quiet", "--count", "8", "--out", scratch.path("sheet.png")});
    CHECK(sheet.status == 0);
    CHECK(sheet.err.empty());
    CHECK(read_image(scratch.path("sheet.png")).width() == 400);
}

TEST_CASE("program/shapes: a question is a line, as one asks it, and those of several lines are as bash takes them") {
    std::size_t n_quoted = 0;
    for (const char* seed : {"1", "2", "3", "5", "7", "9"}) {
        const Json  questions = run({"shapes", "--seed", seed, "--json"}).json().at("questions");
        std::string out = run({"shapes", "--seed", seed, "--questions"}).out;
        CHECK(static_cast<std::size_t>(std::count(out.begin(), out.end(), '\n')) == questions.size());
        for (const Json& q : questions) {
            const std::string line = out.substr(0, out.find('\n')), answer = " -> " + q.at("answer").get<std::string>();
            out.erase(0, line.size() + 1);
            REQUIRE_MESSAGE(line.ends_with(answer), line);
            const std::string asked = line.substr(0, line.size() - answer.size());
            if (q.at("type") != "caption") CHECK_MESSAGE(asked.find(q.at("question").get<std::string>()) != std::string::npos, asked);
            CHECK(asked.find("single word or phrase") == std::string::npos);
            if (!asked.starts_with("$'")) continue;
            ++n_quoted;
            CHECK(run_program({"/bin/bash", "-c", "printf %s " + asked}).out == q.at("prompt").get<std::string>());
        }
    }
    CHECK(n_quoted > 0);
}

TEST_CASE("program/ask: without --model the small model of the repository answers, about pictures that it has never seen") {
    const Scratch scratch;
    std::size_t   asked = 0, right = 0;
    for (const char* seed : {"101", "102", "103", "104", "105", "106", "107", "108"}) {
        const std::string        picture = scratch.path("picture.png");
        const Json               truth = run({"shapes", "--seed", seed, "--json", "--out", picture}).json();
        std::vector<std::string> arguments{"ask", "--json", "--quiet", "--image", picture}, answers;
        for (const Json& q : truth.at("questions"))
            if (const auto type = q.at("type").get<std::string>(); type == "exists" || type == "color" || type == "shape" || type == "count")
                arguments.insert(arguments.end(), {"--prompt", q.at("prompt").get<std::string>()}), answers.push_back(q.at("answer").get<std::string>());
        if (answers.empty()) continue;
        const Json said = run(arguments).json(), list = said.is_array() ? said : Json::array({said});
        REQUIRE(list.size() == answers.size());
        for (std::size_t i = 0; i < answers.size(); ++i) right += list[i].at("text").get<std::string>() == answers[i];
        asked += answers.size();
    }
    REQUIRE(asked >= 16);
    MESSAGE(right << " of " << asked << " answers are right");
    CHECK(right * 10 >= asked * 8);
    const Ran ran = run({"ask", "--image", scratch.path("picture.png"), "--prompt", "What is in it?"});
    CHECK(ran.status == 0);
    CHECK(ran.err.find("coloured shapes and nothing else") != std::string::npos);
    CHECK(ran.err.find("does not know") == std::string::npos);
}

TEST_CASE("program: words that the small model lacks are noted, of whoever asks it, and of no other model") {
    const Scratch                  scratch;
    const std::string              picture = std::string(PRISM_SOURCE_DIR) + "/examples/shapes/pictures/scene-01.png", logits = scratch.path("logits.safetensors");
    const std::string              model = std::string(PRISM_SOURCE_DIR) + "/examples/shapes/model.prism", odd = "What colour is the red sofa? It's a colour.", note = "does not know: colour, sofa (";
    const std::vector<std::string> ask{"ask", "--max-new-tokens", "1", "--image", picture, "--prompt"};
    const auto                     with = [](std::vector<std::string> words, std::initializer_list<std::string> more) { return words.insert(words.end(), more), words; };
    const auto                     noted = [&](const std::vector<std::string>& words, std::string_view input = {}) {
        const Ran ran = run(words, input);
        CHECK_MESSAGE(ran.status == 0, ran.err);
        return ran.err.find(note) != std::string::npos;
    };
    CHECK(noted(with(ask, {odd})));
    CHECK_FALSE(noted(with(ask, {odd, "--quiet"})));
    CHECK_FALSE(noted(with(ask, {odd, "--json"})));
    CHECK_FALSE(noted(with(ask, {odd, "--model", model})));
    CHECK(noted({"chat", "--max-new-tokens", "1"}, odd + "\n"));
    CHECK(noted({"score", "--prompt", "What colour is it?", "--choices", "red, sofa"}));
    CHECK(noted({"logits", "--prompt", odd, "--out", logits}));
    for (const char* known : {"What color is the star?", "Is there a red circle in the image?", "How many shapes are there?\nA. 0\nB. 1\nAnswer with the option's letter from the given choices directly.", "Describe the image."}) {
        const Ran ran = run(with(ask, {known}));
        CHECK(ran.status == 0);
        CHECK(ran.err.find("does not know") == std::string::npos);
    }
}

TEST_CASE("program/shapes: folders to train on and to test with") {
    const Scratch scratch;
    const auto    rows = [&](const char* kind, const char* count) {
        const std::string folder = scratch.path(kind);
        CHECK(run({"shapes", "--json", "--out-folder", folder, "--kind", kind, "--count", count}).json().at("rows") == std::stoi(count));
        return read_json(folder + "/chat.json");
    };
    CHECK(rows("conversations", "12").size() == 12);
    CHECK(rows("captions", "5")[4].at("conversations").size() == 2);
    const Json refg = rows("benchmark:refg", "4");
    CHECK(std::filesystem::exists(scratch.path("benchmark:refg") + "/" + refg[3].at("image").get<std::string>()));
    CHECK(run({"shapes", "--out-folder", scratch.path("words"), "--kind", "tokenizer"}).status == 0);
    CHECK(run({"tokenize", "--json", "--model", scratch.path("words"), "--in", "-"}, R"(["</s>"])").status == 0);
}

TEST_CASE("program/shapes: what cannot be asked is said in one line") {
    const auto refused = [](int status, const std::vector<std::string>& arguments, const char* fact) {
        const Ran ran = run(arguments);
        CAPTURE(arguments);
        CHECK(ran.status == status);
        CHECK(ran.out.empty());
        CHECK_MESSAGE(ran.err.find(fact) != std::string::npos, ran.err);
    };
    refused(2, {"shapes"}, "--out");
    refused(2, {"shapes", "--seed", "x", "--out", "-"}, "--seed");
    refused(2, {"shapes", "--count", "3"}, "--out");
    refused(2, {"shapes", "--out", "-", "--describe"}, "standard output");
    refused(2, {"shapes", "--out", "/nowhere/x.jpg"}, "has to end in .png");
    refused(2, {"shapes", "--out-folder", "/tmp", "--split", "fresh"}, "--count");
    refused(2, {"shapes", "--out-folder", "/tmp", "--kind", "benchmark:none"}, "compositional");
    refused(2, {"shapes", "--out", "-", "--split", "dev"}, "validation");
    refused(1, {"shapes", "--out", "/proc/none/a.png"}, "/proc/none/a.png");
}
