// shapes: pictures of the shapes world, with their questions; folders to train on and to test with.
#include "files.hpp"
#include "options.hpp"
#include "progress.hpp"

#include "shapes/folder.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

namespace program {

namespace {

using namespace prism;

constexpr std::array<std::string_view, 6> split_names{"train", "validation", "test", "compositional", "clutter", "fresh"};

/// The place of a name in a list. Throws UsageError that names them all.
template <class Names>
std::size_t place_of(const std::string& option, const std::string& name, const Names& names) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found != names.end()) return static_cast<std::size_t>(found - names.begin());
    throw UsageError{option + " is '" + name + "'; allowed: " + joined(std::vector<std::string>(names.begin(), names.end()))};
}

void write_rows(const Common& common, const Shapes& args) {
    using enum shapes::FolderKind;
    std::vector<std::string> kinds{"conversations", "captions", "corpus", "tokenizer"};
    for (const std::string_view name : shapes::benchmark_names) kinds.push_back("benchmark:" + std::string(name));
    const std::size_t     kind = place_of("--kind", args.kind, kinds), benchmarks = static_cast<std::size_t>(benchmark);
    shapes::FolderOptions options{.seed = args.seed, .kind = static_cast<shapes::FolderKind>(std::min(kind, benchmarks)),
                                  .split = static_cast<shapes::Split>(place_of("--split", args.split.empty() ? "train" : args.split, split_names)), .first = args.scene, .count = args.count};
    if (options.kind == benchmark) options.benchmark = static_cast<shapes::Benchmark>(kind - benchmarks);
    if (options.count == 0) options.count = options.kind == benchmark ? shapes::n_examples : shapes::size_of(options.split);
    if (options.count == 0 && options.kind != tokenizer) throw UsageError{"--split " + args.split + " has no end: say --count"};
    std::atomic<std::uint64_t> written{0};
    options.on_row = [&](std::uint64_t n) { written = n; };
    {
        const Progress bar{!common.quiet, "writing " + args.out_folder.string(), static_cast<double>(options.count), 1, "rows", [&] { return static_cast<double>(written.load()); }};
        shapes::write_folder(args.out_folder, options);
    }
    if (common.json) print({{"rows", written.load()}});
    else std::cout << args.out_folder.string() << ": " << (options.kind == tokenizer ? "a tokenizer" : std::to_string(written) + " rows") << '\n';
}

/// Hashes of the splits, and what can be known without looking at the pictures.
void report(const Common& common, const Shapes& args) {
    const shapes::World        world{.seed = args.seed};
    std::atomic<std::uint64_t> done{0};
    constexpr auto             total = shapes::n_train + shapes::n_validation + shapes::n_benchmarks * shapes::n_examples;
    const Progress             bar{!common.quiet, "looking at every scene", static_cast<double>(total), 1, "rows", [&] { return static_cast<double>(done.load()); }};
    Json                       json = Json::object();
    const auto                 add = [&](std::string_view name, std::uint64_t n, const shapes::Hash& hash, const shapes::Floor& floor) {
        json[std::string(name)] = {{"rows", n}, {"hash", hash.hex()}, {"floor", floor.share()}};
        if (common.json) return;
        char line[96];
        std::snprintf(line, sizeof line, "%-14s %6llu rows  %s  floor %5.1f %%\n", std::string(name).c_str(), static_cast<unsigned long long>(n), hash.hex().c_str(), 100 * floor.share());
        std::cout << line;
    };
    for (const shapes::Split split : {shapes::Split::train, shapes::Split::validation}) {
        shapes::Hash  hash;
        shapes::Floor floor;
        for (std::uint64_t i = 0; i < shapes::size_of(split); ++i, ++done) {
            hash.add(world.row(split, i));
            for (const auto& q : shapes::conversation(world.scene(split, i))) floor.add(q);
        }
        add(split_names[static_cast<std::size_t>(split)], shapes::size_of(split), hash, floor);
    }
    for (std::size_t b = 0; b < shapes::n_benchmarks; ++b) {
        shapes::Hash  hash;
        shapes::Floor floor;
        for (std::uint64_t i = 0; i < shapes::n_examples; ++i, ++done) {
            const auto e = shapes::example(args.seed, static_cast<shapes::Benchmark>(b), i);
            hash.add(e), floor.add(e.question);
        }
        add(shapes::benchmark_names[b], shapes::n_examples, hash, floor);
    }
    if (common.json) print(json);
}

/// A question in one line. What has several lines (choices by letter) is written as bash takes it: $'first\nsecond'.
std::string as_typed(const std::string& question) {
    if (question.find('\n') == question.npos) return question;
    std::string line = "$'";
    for (const char c : question) line += c == '\n' ? "\\n" : c == '\'' || c == '\\' ? std::string{'\\', c} : std::string{c};
    return line + '\'';
}

/// Pictures of `count` scenes side by side, half as many rows as columns or a few more.
Image sheet(std::uint64_t seed, shapes::Split split, std::uint64_t first, std::size_t count) {
    constexpr std::size_t cell = shapes::longest_side + 4;
    std::size_t           columns = 1;
    while (columns * columns < 2 * count) ++columns;
    Image all = Image::sized((count + columns - 1) / columns * cell, columns * cell);
    all.pixels.fill(255);
    for (std::size_t i = 0; i < count; ++i) {
        const Image one = shapes::draw(shapes::make_scene(seed, {split, first + i}));
        for (std::size_t y = 0; y < one.height(); ++y)
            std::copy_n(one.row(y), one.row_bytes(), all.row(i / columns * cell + 2 + y) + 3 * (i % columns * cell + 2));
    }
    return all;
}

}  // namespace

void run(const Common& common, const Shapes& args) {
    if (args.report) return report(common, args);
    if (!args.out_folder.empty()) return write_rows(common, args);
    if (args.out.empty() && !args.describe && !args.questions && !common.json) throw UsageError{"nothing to do: say --out, --describe, --questions, --out-folder or --report"};
    const bool stream = args.out == "-";
    expect_png("--out", args.out);
    if (args.count > 400) throw UsageError{"--count " + std::to_string(args.count) + ": a sheet holds at most 400 scenes"};
    if (args.count > 0 && args.out.empty()) throw UsageError{"--count needs --out or --out-folder"};
    if (stream && (common.json || args.describe || args.questions)) throw UsageError{"--out - leaves no place for words on standard output"};

    const auto  split = static_cast<shapes::Split>(place_of("--split", args.split.empty() ? "fresh" : args.split, split_names));
    const auto  scene = shapes::make_scene(args.seed, {split, args.scene});
    const Image picture = args.count > 0 ? sheet(args.seed, split, args.scene, static_cast<std::size_t>(args.count)) : shapes::draw(scene);
    if (stream) {
        const auto bytes = encode_png(picture);
        std::cout.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    } else if (!args.out.empty()) {
        write_png(args.out, picture);
        note(common, args.out.string() + ": " + (args.count > 0 ? std::to_string(args.count) + " scenes" : "a scene") + ", " + std::to_string(picture.width()) + " x " +
                         std::to_string(picture.height()) + " pixels");
    }

    const auto conversation = shapes::conversation(scene);
    Json       questions = Json::array();
    for (const auto& q : conversation) questions.push_back({{"type", shapes::to_string(q.type)}, {"question", q.question}, {"prompt", q.prompt}, {"answer", q.answer}});
    if (common.json) return print({{"width", scene.width}, {"height", scene.height}, {"description", shapes::describe(scene)}, {"caption", shapes::caption(scene)}, {"questions", questions}});
    if (args.describe) std::cout << shapes::describe(scene) << "caption: " << shapes::caption(scene) << '\n';
    if (args.questions)
        for (const auto& q : conversation) std::cout << as_typed(shapes::plainly(q)) << " -> " << q.answer << '\n';
}

}  // namespace program
