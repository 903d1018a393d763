// The shapes world in words: questions and their truth, balance, what is kept from training, tokens, scores, folders.
#include "shapes/folder.hpp"
#include "shapes/scoring.hpp"
#include "shapes/source.hpp"

#include "prism/image/read.hpp"
#include "prism/text/prompt.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <unistd.h>

using namespace prism;
using namespace prism::shapes;

namespace {

/// Looks read back from words, without the code that wrote them. Plural or not; nothing for words that are no looks.
std::optional<Looks> read_looks(std::string_view text) {
    Looks looks;
    for (std::string word : shapes::detail::words_of(text)) {
        const auto find = [&](const auto& names) {
            for (std::size_t i = 0; i < names.size(); ++i)
                if (word == names[i] || word == std::string(names[i]) + "s" || word == std::string(names[i]) + "es") return static_cast<int>(i);
            return -1;
        };
        if (word == "the" || word == "a" || word == "an" || word == "shape" || word == "shapes") continue;
        if (const int s = find(shape_names); s >= 0) looks.shape = static_cast<Shape>(s);
        else if (const int c = find(color_names); c >= 0) looks.color = static_cast<Color>(c);
        else if (const int z = find(size_names); z >= 0) looks.size = static_cast<shapes::Size>(z);
        else if (const int t = find(texture_names); t >= 0) looks.texture = static_cast<Texture>(t);
        else return std::nullopt;
    }
    return looks;
}

std::vector<const Object*> matching(const Scene& scene, const Looks& looks) {
    std::vector<const Object*> found;
    for (const Object& o : scene.objects)
        if (looks.match(o)) found.push_back(&o);
    return found;
}

/// The relation from the boxes that are painted, not from centres and radii.
bool related(const Object& a, std::string_view relation, const Object& b) {
    const auto   middle = [](const Object& o, bool x) { return (x ? o.center.x : o.center.y) / double{px}; };
    const double dx = middle(b, true) - middle(a, true), dy = middle(b, false) - middle(a, false), far = std::hypot(dx, dy);
    if (relation == "left of") return dx > 0;
    if (relation == "right of") return dx < 0;
    if (relation == "above") return dy > 0;
    if (relation == "below") return dy < 0;
    if (relation == "near") return far < 34;
    if (relation == "far from") return far > 38;
    if (relation == "larger than") return a.box().area() > b.box().area();
    if (relation == "smaller than") return a.box().area() < b.box().area();
    if (relation == "the same color as") return a.color == b.color;
    if (relation == "a different color from") return a.color != b.color;
    if (relation == "the same shape as") return a.shape == b.shape;
    REQUIRE(relation == "a different shape from");
    return a.shape != b.shape;
}

/// "X is left of the Y" cut at its relation; the first part without its verb.
struct Cut {
    std::string      a, b;
    std::string_view relation;
};
Cut cut(std::string text, std::string_view verb) {
    for (const std::string_view relation : relation_names) {
        const std::string middle = ' ' + std::string(relation) + " the ";
        const auto        at = text.find(middle);
        if (at == std::string::npos) continue;
        Cut found{text.substr(0, at), text.substr(at + middle.size()), relation};
        if (found.a.ends_with(verb)) found.a.resize(found.a.size() - verb.size());
        return found;
    }
    FAIL("no relation in " << text);
    return {};
}
std::string between(const std::string& text, std::string_view before, std::string_view after) {
    REQUIRE_MESSAGE(text.starts_with(before), text);
    REQUIRE_MESSAGE(text.ends_with(after), text);
    return text.substr(before.size(), text.size() - before.size() - after.size());
}

const Object& only(const Scene& scene, std::string_view phrase) {
    const auto looks = read_looks(phrase);
    REQUIRE_MESSAGE(looks, phrase);
    const auto found = matching(scene, *looks);
    REQUIRE_MESSAGE(found.size() == 1, phrase);
    return *found[0];
}

/// The number that an answer stands for: itself, or the place of its letter.
std::size_t number_of(const shapes::Question& q) {
    return q.choices.size() == 16 ? static_cast<std::size_t>(q.answer[0] - 'A') : static_cast<std::size_t>(std::stoi(q.answer));
}

/// Fails unless the answer follows from what the scene holds; everything is read from the words of the question.
void check_truth(const Scene& scene, const shapes::Question& q) {
    CAPTURE(q.question);
    CAPTURE(q.answer);
    CAPTURE(describe(scene));
    switch (q.type) {
        case Type::exists: {
            const auto looks = read_looks(between(q.question, "Is there ", q.question.ends_with("image?") ? " in the image?" : "?"));
            REQUIRE_MESSAGE(looks, q.question);
            CHECK((q.answer == "Yes") == !matching(scene, *looks).empty());
            break;
        }
        case Type::color: CHECK(q.answer == to_string(only(scene, between(q.question, "What color is ", "?")).color)); break;
        case Type::shape: CHECK(q.answer == to_string(only(scene, between(q.question, "What shape is ", "?")).shape)); break;
        case Type::size: CHECK(q.answer == to_string(only(scene, between(q.question, "What size is ", "?")).size)); break;
        case Type::texture: CHECK(q.answer == to_string(only(scene, between(q.question, "Is ", " striped or plain?")).texture)); break;
        case Type::count:
        case Type::tally: {
            const std::string what = between(q.question, "How many ", " are there?");
            CHECK(number_of(q) == (what == "arrows" ? scene.arrows.size() : matching(scene, *read_looks(what)).size()));
            break;
        }
        case Type::related_count:
        case Type::related_tally: {
            const Cut   c = cut(between(q.question, "How many ", "?"), " are");
            std::size_t n = 0;
            const Object& b = only(scene, c.b);
            for (const Object* a : matching(scene, *read_looks(c.a))) n += a != &b && related(*a, c.relation, b);
            CHECK(number_of(q) == n);
            break;
        }
        case Type::relation: {
            const Cut c = cut(between(q.question, "Is ", "?"), "");
            CHECK((q.answer == "Yes") == related(only(scene, c.a), c.relation, only(scene, c.b)));
            break;
        }
        case Type::statement: {
            const Cut c = cut(between(q.question, "The ", "."), " is");
            CHECK((q.answer == "True") == related(only(scene, c.a), c.relation, only(scene, c.b)));
            break;
        }
        case Type::compare: {
            const std::string text = between(q.question, "Are there more ", "?");
            const auto        at = text.find(" than ");
            CHECK((q.answer == "Yes") == (matching(scene, *read_looks(text.substr(0, at))).size() > matching(scene, *read_looks(text.substr(at + 6))).size()));
            break;
        }
        case Type::two_hop: {
            const std::string what = "What " + q.detail + " is ";
            const Cut         c = cut(between(q.question, what, "?"), " that is");
            const Object&     b = only(scene, c.b);
            std::vector<const Object*> found;
            for (const Object& a : scene.objects)
                if (&a != &b && related(a, c.relation, b)) found.push_back(&a);
            REQUIRE(found.size() == 1);
            CHECK(q.answer == (q.detail == "color" ? to_string(found[0]->color) : q.detail == "shape" ? to_string(found[0]->shape) : to_string(found[0]->size)));
            break;
        }
        case Type::box: CHECK(q.answer == box_text(scene, only(scene, q.question).box())); break;
        case Type::box_place: {
            const auto words = shapes::detail::words_of(q.question);
            const auto looks = read_looks(q.question.substr(5 + words[1].size()));
            REQUIRE_MESSAGE(looks, q.question);
            for (const Object* o : matching(scene, *looks)) {
                if (o->box() == *q.box) continue;
                const Point there{(q.box->x1 + q.box->x2) / 2, (q.box->y1 + q.box->y2) / 2}, here{(o->box().x1 + o->box().x2) / 2, (o->box().y1 + o->box().y2) / 2};
                CHECK((words[1] == "leftmost" ? here.x > there.x : words[1] == "rightmost" ? here.x < there.x : words[1] == "top" ? here.y > there.y : here.y < there.y));
            }
            break;
        }
        case Type::box_long: {
            const Cut     c = cut(q.question, " that is");
            const Object& b = only(scene, c.b);
            std::vector<const Object*> found;
            for (const Object* a : matching(scene, *read_looks(c.a)))
                if (a != &b && related(*a, c.relation, b)) found.push_back(a);
            REQUIRE(found.size() == 1);
            CHECK(q.answer == box_text(scene, found[0]->box()));
            break;
        }
        case Type::diagram: {
            const bool backwards = q.question.starts_with("Which letter points at ");
            const char given = backwards ? q.question[23] : q.question[18];
            const auto at = q.prompt.find("\n" + q.answer + ". ");
            REQUIRE(at != std::string::npos);
            const char chosen = q.prompt[at + 4];
            CHECK(std::ranges::any_of(scene.arrows, [&](const Arrow& a) {
                const char from = scene.nodes[a.from].letter, to = scene.nodes[a.to].letter;
                return backwards ? to == given && from == chosen : from == given && to == chosen;
            }));
            break;
        }
        case Type::read: CHECK(q.answer == scene.label->text); break;
        case Type::answerable:
            if (scene.damage == Damage::none || scene.damage == Damage::empty) {
                const auto looks = read_looks(between(q.question, "What " + q.detail + " is ", "?"));
                const auto found = looks ? matching(scene, *looks) : std::vector<const Object*>{};
                CHECK((q.answer == unanswerable) == found.empty());
            } else CHECK(q.answer == unanswerable);
            break;
        case Type::caption: break;
    }
}

/// Everything that the world says to a model or hopes to hear from it.
template <class Each>
void for_every_sentence(std::uint64_t n, Each&& each) {
    const World world{.seed = 11};
    for (std::uint64_t i = 0; i < n; ++i) {
        const Row row = world.row(Split::train, i);
        for (const prism::Turn& turn : row.turns) each(turn.text.starts_with("<image>\n") ? turn.text.substr(8) : turn.text);
        each(world.caption_row(Split::train, i).turns[1].text);
        each(corpus_document(11, i));
    }
    for (std::size_t b = 0; b < n_benchmarks; ++b)
        for (std::uint64_t i = 0; i < 96; ++i) {
            const Example e = example(11, static_cast<Benchmark>(b), i);
            each(e.question.prompt), each(e.question.question);
            for (const std::string& answer : e.answers) each(answer);
        }
}

}  // namespace

TEST_CASE("shapes/questions: every answer follows from the scene") {
    std::map<Type, int> asked;
    for (const Split split : {Split::train, Split::compositional, Split::clutter})
        for (std::uint64_t i = 0; i < 700; ++i) {
            const Scene scene = make_scene(11, {split, i});
            for (const shapes::Question& q : conversation(scene)) check_truth(scene, q), ++asked[q.type];
        }
    CHECK(asked.size() == n_types);
    for (std::size_t b = 0; b < n_benchmarks; ++b)
        for (std::uint64_t i = 0; i < 64; ++i) {
            const Example e = example(11, static_cast<Benchmark>(b), i);
            check_truth(e.scene, e.question);
        }
}

TEST_CASE("shapes/questions: the mixture has the study's shares") {
    std::map<std::string, double> share;
    double                        n = 0;
    for (std::uint64_t i = 0; i < 4000; ++i)
        for (const shapes::Question& q : conversation(make_scene(11, {Split::train, i}))) {
            const bool letters = q.choices.size() > 2, boxes = q.box.has_value(), two = q.choices.size() == 2;
            share[letters ? "letters" : boxes ? "boxes" : two ? "two" : q.type == Type::caption ? "caption" : q.type == Type::read ? "text" : "vqa"] += 1;
            n += 1;
        }
    const std::map<std::string, double> wanted{{"vqa", 40}, {"boxes", 20}, {"two", 15}, {"letters", 10}, {"caption", 5}, {"text", 5}};
    for (const auto& kind : wanted) {
        CAPTURE(kind.first);
        CHECK(std::abs(share[kind.first] / n * 95 - kind.second) < 2.0);  // 5 of a hundred have no picture
    }
}

TEST_CASE("shapes/questions: words tell little about answers") {
    Floor train;
    for (std::uint64_t i = 0; i < 6000; ++i)
        for (const shapes::Question& q : conversation(make_scene(11, {Split::train, i}))) train.add(q);
    for (const Floor::Line& line : train.lines()) {
        CAPTURE(line.form);
        CAPTURE(line.answer);
        if (line.n < 200) continue;
        const bool two = line.form.starts_with("exists") || line.form.starts_with("relation") || line.form.starts_with("statement") || line.form.starts_with("compare") ||
                         line.form.starts_with("size") || line.form.starts_with("texture") || line.form == "two hop, size";
        // 5 standard deviations of a share of one half, 5 points of the scenes that permit one answer only
        if (two) CHECK(line.share < 0.55 + 2.5 / std::sqrt(static_cast<double>(line.n)));
        else CHECK(line.share < (line.form.starts_with("answerable") ? 0.72 : 0.45));
    }
    std::map<std::string, double> most{{"vqa", 0.31}, {"gqa", 0.29}, {"viz", 0.51}, {"text", 0.02}, {"ref", 0.02}, {"ref+", 0.02}, {"refg", 0.02}, {"clutter", 0.02},
                                       {"vsr", 0.51}, {"tally", 0.23}, {"pope", 0.51}, {"ai2d", 0.29}, {"compositional", 0.40}};
    for (std::size_t b = 0; b < n_benchmarks; ++b) {
        Floor floor;
        for (std::uint64_t i = 0; i < n_examples; ++i) floor.add(example(11, static_cast<Benchmark>(b), i).question);
        CAPTURE(benchmark_names[b]);
        CHECK(floor.share() < most.at(std::string(benchmark_names[b])));
    }
}

TEST_CASE("shapes/questions: yes is as likely for any shape and colour that is asked for") {
    std::map<std::string, std::array<int, 2>> answers;
    for (std::uint64_t i = 0; i < 12'000; ++i)
        for (const shapes::Question& q : conversation(make_scene(11, {Split::train, i})))
            if (q.type == Type::exists && q.detail == "random" && q.about->shape && q.about->color) {
                ++answers[std::string(to_string(*q.about->shape))][q.answer == "Yes"];
                ++answers[std::string(to_string(*q.about->color))][q.answer == "Yes"];
            }
    CHECK(answers.size() == 14);
    for (const auto& word : answers) {
        CAPTURE(word.first);
        const double no = word.second[0], yes = word.second[1];
        CHECK(std::abs(yes / (yes + no) - 0.5) < 0.06 + 2.5 / std::sqrt(yes + no));
    }
}

TEST_CASE("shapes/questions: what is held out is neither shown nor named outside its test") {
    std::vector<std::string> kept;
    for (std::size_t s = 0; s < shape_names.size(); ++s)
        for (std::size_t c = 0; c < color_names.size(); ++c)
            if (held_out(static_cast<Shape>(s), static_cast<Color>(c))) kept.push_back(std::string(color_names[c]) + ' ' + std::string(shape_names[s]));
    CHECK(kept.size() == 5);  // of 48
    std::size_t named = 0;
    const auto  names = [&](const std::string& text) { return std::ranges::any_of(kept, [&](const std::string& k) { return text.find(k) != std::string::npos; }); };
    const World world{.seed = 11};
    for (std::uint64_t i = 0; i < 5000; ++i)
        for (const Split split : {Split::train, Split::validation}) {
            const Row row = world.row(split, i);
            for (const prism::Turn& turn : row.turns) named += names(turn.text);
            named += names(corpus_document(11, i)) + names(world.caption_row(split, i).turns[1].text);
        }
    CHECK(named == 0);
    for (std::uint64_t i = 0; i < 200; ++i) {
        const Example e = example(11, Benchmark::compositional, i);
        CHECK(shapes::detail::about_held_out(e.scene, e.question));
    }
}

TEST_CASE("shapes/world: rows and examples are the same everywhere, in any order") {
    const World world{.seed = 7};
    Hash        rows, examples, corpus;
    for (std::uint64_t i = 0; i < 300; ++i) rows.add(world.row(Split::train, i)), rows.add(world.caption_row(Split::validation, i)), corpus.add(corpus_document(7, i));
    for (std::size_t b = 0; b < n_benchmarks; ++b)
        for (std::uint64_t i = 0; i < 24; ++i) examples.add(example(7, static_cast<Benchmark>(b), i));
    CHECK(rows.hex() == "7d97cb87ec6c60ff");
    CHECK(examples.hex() == "7e21160287e51da9");
    CHECK(corpus.hex() == "3e8a7be3eba58f62");

    const auto text_of = [](const Row& row) {
        std::string all;
        for (const prism::Turn& turn : row.turns) all += turn.text + '|';
        return all;
    };
    const std::string last = text_of(world.row(Split::train, 59'999)), again = text_of(world.row(Split::train, 59'999));
    CHECK(last == again);
    CHECK(last != text_of(world.row(Split::train, 59'998)));
    CHECK(last != text_of(World{.seed = 8}.row(Split::train, 59'999)));
    for (std::uint64_t i = 0; i < 50; ++i) CHECK(text_of(World{.seed = 7, .plain_first = 100, .plain_later = 100}.row(Split::train, i)).find("single word") == std::string::npos);
}

TEST_CASE("shapes/captions: a caption is true of its picture, and of few others") {
    const CaptionOptions options{.spatial_percent = 50};
    std::vector<Scene>   scenes;
    for (std::uint64_t i = 0; i < 200; ++i) scenes.push_back(make_scene(5, {Split::validation, i}));
    std::size_t fitting = 0, spatial = 0;
    for (const Scene& scene : scenes) {
        const CaptionFacts facts = caption_facts(scene, options);
        CAPTURE(to_string(facts));
        CHECK(fits(facts, scene));
        spatial += facts.where.has_value();
        for (const Scene& other : scenes) fitting += fits(facts, other);
        if (!facts.label.empty()) CHECK(std::ranges::count_if(scenes, [&](const Scene& other) { return fits(facts, other); }) == 1);
    }
    CHECK(spatial > 20);
    CHECK(fitting > 2 * scenes.size());
    CHECK(fitting < 20 * scenes.size());
    const double best = best_retrieval(scenes, options);
    CHECK(best > 0.5);
    CHECK(best < 0.8);
    const std::vector<Scene> twice{scenes[0], scenes[0]};
    CHECK(best_retrieval(twice, options) == 0);  // the same words
    CHECK(best_retrieval({scenes[0]}, options) == 1);

    Scene pair = make_scene(5, {Split::validation, 0});
    pair.kind = Kind::ordinary, pair.damage = Damage::none, pair.label.reset(), pair.nodes.clear(), pair.arrows.clear();
    pair.objects = {Object{.shape = Shape::star, .color = Color::red, .center = {20 * px, 20 * px}, .radius = 6 * px},
                    Object{.shape = Shape::ring, .color = Color::cyan, .center = {60 * px, 20 * px}, .radius = 6 * px}};
    const Looks star{.shape = Shape::star}, ring{.shape = Shape::ring};
    CHECK(fits({.things = {{star}, {ring}}, .where = Relation::left_of}, pair));
    CHECK_FALSE(fits({.things = {{star}, {ring}}, .where = Relation::above}, pair));
    CHECK_FALSE(fits({.things = {{ring}, {star}}, .where = Relation::left_of}, pair));
    CHECK_FALSE(fits({.things = {{star, 2}}}, pair));
    CHECK_FALSE(fits({.things = {{star}}, .label = "AB"}, pair));
    CHECK_FALSE(fits({.instead = "An empty image."}, pair));
    CHECK(to_string(CaptionFacts{.things = {{star}, {ring}}, .where = Relation::left_of}) == "A star left of a ring.");
    CHECK(to_string(CaptionFacts{.things = {{star, 2}, {ring}}, .label = "A7"}) == "Two stars and a ring. The text says A7.");
}

TEST_CASE("shapes/vocabulary: every sentence is words that are known, and comes back as it was") {
    const Tokenizer words = tokenizer();
    const auto      tokens = vocabulary();
    CHECK(tokens.size() <= max_vocabulary);
    CHECK(words.size() == tokens.size());
    std::set<std::int32_t>   used;
    std::size_t              sentences = 0;
    for_every_sentence(3000, [&](const std::string& sentence) {
        const auto ids = words.encode(sentence, {.add_special = false});
        ++sentences;
        if (words.decode(ids) != sentence) CHECK(words.decode(ids) == sentence);
        for (const std::int32_t id : ids) {
            const std::string& token = tokens[static_cast<std::size_t>(id)];
            const bool         broken = id == 0 || (token.size() == 1 && token[0] >= 'a' && token[0] <= 'z');  // a letter of a word that is unknown
            if (broken) CHECK_MESSAGE(!broken, sentence);
            used.insert(id);
        }
    });
    CHECK(sentences > 40'000);
    const auto ids_of = [&](std::string_view text) {
        std::vector<std::string> found;
        for (const std::int32_t id : words.encode(text, {.add_special = false})) found.push_back(tokens[static_cast<std::size_t>(id)]);
        return found;
    };
    const std::string space{shapes::detail::word_start};
    CHECK(ids_of("[0.37, 1.00]") == std::vector<std::string>{space + "[", "0", ".", "3", "7", ",", space + "1", ".", "0", "0", "]"});
    CHECK(ids_of("K4T") == std::vector<std::string>{space + "K", "4", "T"});
    for (const char* choice : {"True", "False", "Yes", "No", "A", "D", "P"}) CHECK(ids_of(choice).size() == 1);
    CHECK(words.decode(words.encode("a word like zebra", {.add_special = false})) == "a word like zebra");
}

TEST_CASE("shapes/vocabulary: the prompt of the small model, whole and turn by turn as training has it") {
    const Tokenizer          words = tokenizer();
    PromptBuilder            prompt = prompt_builder_for("llama2-7b-pure");
    std::vector<std::int32_t> turns;
    const auto               add = [&](Role role, std::string_view message) {
        const std::string text = prompt.add_turn(role, message);
        const auto        ids = words.encode(unicode::rstrip(text), {.add_special = turns.empty(), .parse_special = true});
        turns.insert(turns.end(), ids.begin(), ids.end());
    };
    add(Role::human, "<image>\nHow many stars are there?\nAnswer the question using a single word or phrase.");
    add(Role::gpt, "3");
    add(Role::human, "Please provide the bounding box coordinate of the region this sentence describes: \"the red circle\"");
    const auto question = turns;
    CHECK(words.encode(prompt.pieces()) == question);
    add(Role::gpt, "[0.12, 0.34, 0.56, 0.78]");
    CHECK(words.encode(prompt.pieces()) == turns);
    CHECK(turns.front() == words.bos_id());
    CHECK(turns.back() == words.eos_id());
    // What a model writes after the question is what it was trained to write.
    std::vector<std::int32_t> answer(turns.begin() + static_cast<std::ptrdiff_t>(question.size()), turns.end());
    CHECK(words.decode(answer) == "[0.12, 0.34, 0.56, 0.78]");
}

TEST_CASE("shapes/vocabulary: the committed files are those of the source") {
    for (const auto& [name, text] : tokenizer_files()) CHECK(read_file(std::filesystem::path(PRISM_SOURCE_DIR) / "examples/shapes/tokenizer" / name) == text);
}

TEST_CASE("shapes/scoring: exact matches and ten people") {
    CHECK(exact_match(" Red", "red"));
    CHECK(exact_match("Yes.", "yes"));
    CHECK(!exact_match("dark red", "red"));
    const auto agree = [](std::size_t n) {
        std::vector<std::string> people(10, "blue");
        std::fill_n(people.begin(), n, "red");
        return soft_accuracy("red", people);
    };
    CHECK(agree(0) == 0);
    CHECK(agree(1) == doctest::Approx(0.3));
    CHECK(agree(2) == doctest::Approx(0.6));
    CHECK(agree(3) == doctest::Approx(0.9));
    CHECK(agree(4) == 1);
    CHECK(agree(10) == 1);
}

TEST_CASE("shapes/scoring: boxes are read strictly, and overlaps are exact") {
    CHECK(parse_box("[0.1, 0.2, 0.3, 0.4]").value()[2] == doctest::Approx(0.3));
    CHECK(parse_box(" [0.10,0.20,0.30,0.40]\n"));
    CHECK(parse_box("[0, 0, 1, 1]"));
    CHECK(parse_box("[.1, .2, .3, .4]"));
    for (const char* bad : {"", "[]", "[0.1, 0.2, 0.3]", "[0.1, 0.2, 0.3, 0.4, 0.5]", "[0.1 0.2 0.3 0.4]", "(0.1, 0.2, 0.3, 0.4)", "[0.1, 0.2, 0.3, 0.4].",
                            "The box is [0.1, 0.2, 0.3, 0.4]", "[0.1, 0.2, 1.1, 0.4]", "[0.3, 0.2, 0.1, 0.4]", "[0.1, 0.2, 0.1, 0.4]", "[0.1, 0.2, nan, 0.4]",
                            "[0.1, , 0.3, 0.4]", "[., 0.2, 0.3, 0.4]", "[0.1.2, 0.2, 0.3, 0.4]", "[-0.1, 0.2, 0.3, 0.4]"}) {
        CAPTURE(bad);
        CHECK(!parse_box(bad));
    }
    CHECK(intersection_over_union({0.1, 0.1, 0.5, 0.5}, {0.1, 0.1, 0.5, 0.5}) == doctest::Approx(1));
    CHECK(intersection_over_union({0.1, 0.1, 0.4, 0.5}, {0.1, 0.1, 0.4, 0.9}) == doctest::Approx(0.5));
    CHECK(intersection_over_union({0, 0, 0.5, 0.5}, {0.5, 0.5, 1, 1}) == 0);
    for (std::uint64_t i = 0; i < 200; ++i) {  // every answer that training shows can be scored, and is right
        const Example e = example(11, Benchmark::ref_plus, i);
        const auto    box = parse_box(e.question.answer);
        REQUIRE(box);
        const double w = e.scene.width * px, h = e.scene.height * px;
        CHECK(intersection_over_union(*box, {e.question.box->x1 / w, e.question.box->y1 / h, e.question.box->x2 / w, e.question.box->y2 / h}) > 0.85);
    }
}

TEST_CASE("shapes/scoring: the likeliest of a few tokens") {
    const std::vector<float>        logits{50, 1, 2, 2, -1000, -1001};
    const std::vector<std::int32_t> few{1, 2, 3}, far{4, 5};
    CHECK(likeliest(logits, few) == 1);  // of equals the first
    const auto p = choice_probabilities(logits, far);
    CHECK(p[0] == doctest::Approx(1 / (1 + std::exp(-1.0))));
    CHECK(p[0] + p[1] == doctest::Approx(1));
}

TEST_CASE("shapes/folder: LLaVA's format, with the pictures that were meant") {
    const auto root = std::filesystem::temp_directory_path() / ("prism-shapes-" + std::to_string(::getpid()));
    const World world{.seed = 5};
    write_folder(root / "a", {.seed = 5, .split = Split::validation, .first = 40, .count = 30});
    const Json chat = read_json(root / "a/chat.json");
    REQUIRE(chat.size() == 30);
    std::size_t pictures = 0;
    for (std::uint64_t i = 0; i < 30; ++i) {
        const Json& row = chat[i];
        const Row   want = world.row(Split::validation, 40 + i);
        CHECK(row.at("id") == "0000" + std::to_string(40 + i));
        CHECK(row.contains("image") == want.scene.has_value());
        REQUIRE(row.at("conversations").size() == want.turns.size());
        for (std::size_t t = 0; t < want.turns.size(); ++t)
            CHECK(row["conversations"][t] == Json{{"from", t % 2 == 0 ? "human" : "gpt"}, {"value", want.turns[t].text}});
        if (!want.scene) continue;
        ++pictures;
        CHECK(row["conversations"][0]["value"].get<std::string>().starts_with("<image>\n"));
        CHECK(read_image(root / "a" / row["image"].get<std::string>()).pixels == draw(*want.scene).pixels);
    }
    CHECK(pictures > 20);
    write_folder(root / "b", {.seed = 5, .kind = FolderKind::benchmark, .benchmark = Benchmark::vqa, .count = 3});
    const Json vqa = read_json(root / "b/chat.json");
    CHECK(vqa[2].at("answers").size() == 10);
    CHECK(vqa[2].at("question") == example(5, Benchmark::vqa, 2).question.question);
    write_folder(root / "c", {.seed = 5, .kind = FolderKind::corpus, .count = 3});
    CHECK(read_file(root / "c/corpus.jsonl").starts_with(Json{{"text", corpus_document(5, 0)}}.dump() + '\n'));
    write_folder(root / "d", {.kind = FolderKind::tokenizer});
    CHECK(Tokenizer::open(root / "d").encode("Yes") == tokenizer().encode("Yes"));

    // prism's own reader takes the folder, and the world without files gives its loader the same numbers.
    const std::vector<ImageTransform> towers(1, ImageTransform{.size = 48});
    const LlavaOptions                options{.format = prompt_format::pure(), .transforms = towers};
    const LlavaExamples               files{root / "a/chat.json", root / "a", tokenizer(), options};
    const WorldExamples               streamed{world, Split::validation, 70, options};
    PixelReader                       reader{{.threads = 1}};
    std::vector<float>                a(3 * 48 * 48), b(a.size());
    REQUIRE(files.sizes().size() == 30);
    for (std::size_t i = 0; i < 30; ++i) {
        CHECK(files.sizes()[i].words == streamed.sizes()[40 + i].words);
        CHECK(files.tokens(i).ids == streamed.tokens(40 + i).ids);
        CHECK(files.tokens(i).labels == streamed.tokens(40 + i).labels);
        CHECK(files.sizes()[i].picture == streamed.sizes()[40 + i].picture);
        if (!files.sizes()[i].picture) continue;
        const TowerPixels from_file{towers[0], {a.data(), {3, 48, 48}}}, drawn{towers[0], {b.data(), {3, 48, 48}}};
        files.read_picture(i, reader, std::span(&from_file, 1)), streamed.read_picture(40 + i, reader, std::span(&drawn, 1));
        CHECK(a == b);
    }
    std::error_code ignored;
    std::filesystem::remove_all(root, ignored);
    CHECK_THROWS_AS(write_folder("/proc/none", {.count = 1}), LoadError);
}
