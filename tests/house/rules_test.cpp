// The rules of the house that a reader of the sources can check: who includes whom, who names which library, and what
// every file must look like. Nothing is compiled here; the other house tests do that (see CMakeLists.txt).
#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

const fs::path root = PRISM_SOURCE_DIR;
const fs::path library = root / "include/prism";

/// The arrows of the rooms, as drawn: a room and the rooms whose arrows end in it. What those include comes with them.
const std::map<std::string, std::vector<std::string>> arrows{
    {"core", {}},
    {"quant", {"core"}},
    {"backend", {"quant"}},
    {"ops", {"backend"}},
    {"nn", {"ops"}},
    {"vision", {"nn"}},
    {"lm", {"nn"}},
    {"fusion", {"nn"}},
    {"io", {"core"}},
    {"image", {"io"}},
    {"text", {"io"}},
    {"model", {"vision", "lm", "fusion", "image", "text"}},
    {"generate", {"model"}},
    {"eval", {"generate"}},
    {"train", {"model"}},
};

bool may_include(const std::string& room, const std::string& other) {
    if (room == other) return true;
    const auto it = arrows.find(room);
    return it != arrows.end() && std::any_of(it->second.begin(), it->second.end(),
                                             [&](const auto& left) { return may_include(left, other); });
}

std::string read(const fs::path& file) {
    std::ifstream in{file, std::ios::binary};
    return {std::istreambuf_iterator<char>{in}, {}};
}

/// `text` without comments, string and character literals: what is left of each is a space.
std::string code_only(const std::string& text) {
    std::string code;
    const auto  past = [&](const std::string& closing, std::size_t from) {
        const auto at = text.find(closing, from);
        return at == std::string::npos ? text.size() : at + closing.size();
    };
    for (std::size_t i = 0; i < text.size();) {
        const char c = text[i];
        if (text.compare(i, 2, "//") == 0) i = std::min(text.find('\n', i), text.size());
        else if (text.compare(i, 2, "/*") == 0) i = past("*/", i + 2), code += ' ';
        else if (text.compare(i, 2, "R\"") == 0) {
            const auto open = text.find('(', i);
            const auto closing = ")" + text.substr(i + 2, open - i - 2).append("\"");
            i = past(closing, i + 2), code += ' ';
        } else if (c == '"' ||
                   (c == '\'' && (code.empty() || !std::isalnum(static_cast<unsigned char>(code.back()))))) {
            for (++i; i < text.size() && text[i] != c; ++i)
                if (text[i] == '\\') ++i;
            ++i, code += ' ';
        } else code += c, ++i;
    }
    return code;
}

/// Every file below `folder`, except git's own and what builds leave behind.
std::vector<fs::path> files_below(const fs::path& folder, const std::function<bool(const fs::path&)>& wanted) {
    std::vector<fs::path> found;
    for (auto it = fs::recursive_directory_iterator{folder}; it != fs::recursive_directory_iterator{}; ++it) {
        const std::string name = it->path().filename().string();
        if (it->is_directory() && (name == ".git" || name == ".cache" || name.starts_with("build")))
            it.disable_recursion_pending();
        else if (it->is_regular_file() && wanted(it->path())) found.push_back(it->path());
    }
    std::sort(found.begin(), found.end());
    return found;
}

bool is_header(const fs::path& p) { return p.extension() == ".hpp" || p.extension() == ".cuh"; }
bool is_source(const fs::path& p) {
    static const std::set<std::string> endings{".hpp", ".cpp", ".cuh", ".cu", ".inl", ".cmake", ".in", ".py", ".json"};
    const fs::path                     folder = p.parent_path();
    if (fs::relative(p, root).string().starts_with("tests/data/reference")) return false;
    return endings.contains(p.extension().string()) || p.filename() == "CMakeLists.txt" || folder == root / "scripts" ||
           folder == root / ".ci";
}
const std::vector<fs::path>& headers() {
    static const auto all = files_below(library, is_header);
    return all;
}

/// Headers, and the .inl files that belong to them.
const std::vector<fs::path>& library_sources() {
    static const auto all = files_below(library, [](const fs::path& p) { return is_header(p) || p.extension() == ".inl"; });
    return all;
}

/// "core/view.hpp"; its room is "core", and that of "prism.hpp" is empty.
std::string name_of(const fs::path& header) { return fs::relative(header, library).generic_string(); }
std::string room_of(const std::string& name) {
    const auto slash = name.find('/');
    return slash == std::string::npos ? "" : name.substr(0, slash);
}

/// What a text includes, as written between the quotes or brackets.
std::vector<std::string> included_by(const std::string& text) {
    static const std::regex  line{R"rx((?:^|\n)[ \t]*#[ \t]*include[ \t]*["<]([^">\n]+)[">])rx"};
    std::vector<std::string> found;
    for (std::sregex_iterator it{text.begin(), text.end(), line}, end; it != end; ++it) found.push_back((*it)[1]);
    return found;
}
std::vector<std::string> includes_of(const fs::path& file) { return included_by(read(file)); }

/// `text` without the lines that a compiler skips: whether PRISM_COMPILED is defined is known, of other conditions both
/// branches count.
std::string lines_compiled(const std::string& text, bool compiled) {
    struct Branch {
        bool known, taken;
    };
    std::string         kept;
    std::vector<Branch> open;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find('\n', at), text.size() - 1) + 1;
        const std::string line = text.substr(at, end - at);
        at = end;
        if (line.starts_with("#if")) {
            const bool known = line.find("defined(PRISM_COMPILED)") != std::string::npos;
            open.push_back({known, !known || (line.find("!defined(PRISM_COMPILED)") == std::string::npos) == compiled});
        } else if (line.starts_with("#else") && !open.empty()) {
            if (open.back().known) open.back().taken = !open.back().taken;
        } else if (line.starts_with("#endif") && !open.empty()) {
            open.pop_back();
        } else if (std::all_of(open.begin(), open.end(), [](const Branch& b) { return b.taken; })) {
            kept += line;
        }
    }
    return kept;
}

/// Everything that is included from a header of the library, at whatever distance: ours as "prism/...", others as written.
std::set<std::string> reached_from(const std::string& header, bool compiled) {
    std::set<std::string>    reached;
    std::vector<std::string> waiting{header};
    while (!waiting.empty()) {
        const std::string name = waiting.back();
        waiting.pop_back();
        if (!reached.insert(name).second || !name.starts_with("prism/")) continue;
        for (const std::string& included : included_by(lines_compiled(read(library.parent_path() / name), compiled))) waiting.push_back(included);
    }
    return reached;
}

bool names(const std::string& code, const std::string& pattern) { return std::regex_search(code, std::regex{pattern}); }

}  // namespace

TEST_CASE("house/rooms: comments and literals are not code") {
    CHECK(code_only("a /* xt::b */ c // std::cout\n\"Eigen::\" 'x' 1'000 R\"-(\"xt::)-\" d") ==
          "a   c \n    1'000   d");
}

TEST_CASE("house/rooms: the arrows have a direction") {
    CHECK(may_include("nn", "core"));
    CHECK(may_include("model", "io"));
    CHECK(may_include("eval", "vision"));
    CHECK_FALSE(may_include("core", "quant"));
    CHECK_FALSE(may_include("ops", "nn"));
    CHECK_FALSE(may_include("vision", "lm"));
    CHECK_FALSE(may_include("image", "ops"));
    CHECK_FALSE(may_include("nn", "train"));
    CHECK_FALSE(may_include("cellar", "core"));
}

TEST_CASE("house/rooms: every room is known and includes only rooms to its left") {
    const std::set<std::string> outside{"", "interop"};  // prism.hpp, fwd.hpp, cuda.cuh; leaves that nobody includes
    for (const auto& header : library_sources()) {
        const std::string name = name_of(header), room = room_of(name);
        CAPTURE(name);
        const bool known = arrows.contains(room) || outside.contains(room);
        CHECK(known);
        for (const std::string& included : includes_of(header)) {
            CAPTURE(included);
            if (!included.starts_with("prism/")) {
                CHECK_FALSE(fs::exists(header.parent_path() / included));  // one spelling: "prism/room/file.hpp"
                continue;
            }
            CHECK(fs::exists(library.parent_path() / included));
            const bool leftwards = outside.contains(room) || may_include(room, room_of(included.substr(6)));
            CHECK(leftwards);
        }
    }
}

TEST_CASE("house/rooms: only backend/ names Eigen, CUDA and their kin; xtensor stays with npy and interop, MPI in a header of its own") {
    for (const auto& header : library_sources()) {
        const std::string name = name_of(header), room = room_of(name), code = code_only(read(header));
        CAPTURE(name);
        const auto included = includes_of(header);
        const auto includes = [&](const char* pattern) {
            return std::any_of(included.begin(), included.end(),
                               [&](const std::string& i) { return names(i, pattern); });
        };
        if (room != "backend" && room != "interop") {
            CHECK_FALSE(names(code, R"(\bEigen::)"));
            CHECK_FALSE(includes("^(unsupported/)?Eigen/"));
            CHECK_FALSE(includes("^(cuda|cublas|cudnn|nvtx)"));
        }
        if (room != "interop" && name != "io/npy.hpp") {
            CHECK_FALSE(names(code, R"(\bxt::)"));
            CHECK_FALSE(includes("^xt(ensor|l|simd)/"));
        }
        if (name != "train/mpi.hpp") {
            CHECK_FALSE(includes("^(mpi\\.h$|prism/train/mpi\\.hpp$)"));
        }
    }
}

TEST_CASE("house/rooms: modules and models name no concrete backend") {
    for (const auto& header : headers()) {
        const std::string name = name_of(header), room = room_of(name);
        if (room.empty() || room == "backend" || room == "interop") continue;
        CAPTURE(name);
        for (const std::string& included : includes_of(header)) {
            CAPTURE(included);
            CHECK_FALSE(names(included, "^prism/backend/(cpu|cuda)/"));
        }
    }
}

TEST_CASE("house/headers: prism.hpp reaches nothing that costs a compiler much and is not needed") {
    CHECK(lines_compiled("a\n#if !defined(PRISM_COMPILED)\nb\n#if X\nc\n#endif\n#else\nd\n#endif\ne\n", true) == "a\nd\ne\n");
    CHECK(lines_compiled("a\n#if !defined(PRISM_COMPILED)\nb\n#if X\nc\n#endif\n#else\nd\n#endif\ne\n", false) == "a\nb\nc\ne\n");
    const auto any_of = [](const std::set<std::string>& reached, const char* pattern) {
        return std::any_of(reached.begin(), reached.end(), [&](const std::string& name) { return names(name, pattern); });
    };
    const auto header_only = reached_from("prism/prism.hpp", false), compiled = reached_from("prism/prism.hpp", true);
    CHECK(any_of(header_only, "^nlohmann/json\\.hpp$"));  // so the walk arrives where it should
    CHECK(any_of(header_only, "^immintrin\\.h$"));
    CHECK(any_of(compiled, "^prism/text/tokenizer\\.hpp$"));
    CHECK_FALSE(any_of(header_only, "^((unsupported/)?Eigen|xtensor|xtl|CLI)/|^(regex|iostream|sstream|fstream|iomanip|ranges|future)$|^prism/train/"));
    CHECK_FALSE(any_of(compiled, "^nlohmann/|^(immintrin|jpeglib|spng|zlib)\\.h$|\\.inl$"));
}

TEST_CASE("house/headers: each opens with what it is, is included once, prints nothing and leaves no macro behind") {
    // What kernels are annotated with, in every header of theirs; what Eigen wants to be told before it is included.
    const std::set<std::string> kept{"PRISM_DEVICE", "PRISM_HOST_DEVICE", "PRISM_UNROLL", "PRISM_NO_UNROLL", "EIGEN_NO_CUDA"};
    for (const auto& header : headers()) {
        CAPTURE(name_of(header));
        const std::string text = read(header), code = code_only(text);
        CHECK(text.starts_with("// "));
        CHECK(names(text, R"((^|\n)#pragma once\n)"));
        CHECK_FALSE(names(code, R"(\bstd::(cout|cerr|clog)\b|\b(printf|fprintf|puts|putchar)\s*\()"));
        static const std::regex define{R"((?:^|\n)[ \t]*#[ \t]*define[ \t]+(\w+))"};
        for (std::sregex_iterator it{code.begin(), code.end(), define}, end; it != end; ++it) {
            const std::string macro = (*it)[1];
            CAPTURE(macro);
            const bool gone = names(code, R"(#[ \t]*undef[ \t]+)" + macro + R"(\b)");
            CHECK((gone || (kept.contains(macro) && (name_of(header) == "backend/cuda/annotate.hpp" || name_of(header) == "cuda.cuh"))));
        }
    }
}

TEST_CASE("house/rooms: every room has a README of a page") {
    for (const auto& entry : fs::directory_iterator{library}) {
        if (!entry.is_directory() || files_below(entry.path(), is_header).empty()) continue;
        CAPTURE(entry.path().filename().string());
        const std::string text = read(entry.path() / "README.md");
        CHECK_FALSE(text.empty());
        CHECK(std::count(text.begin(), text.end(), '\n') <= 80);
    }
}

TEST_CASE("house/files: sources are ASCII, without tabs and without spaces at the end of a line") {
    for (const auto& file : files_below(root, is_source)) {
        CAPTURE(fs::relative(file, root).string());
        const std::string text = read(file);
        const bool        ascii =
            std::all_of(text.begin(), text.end(), [](char c) { return c == '\n' || (c >= ' ' && c <= '~'); });
        CHECK(ascii);
        CHECK(text.find(" \n") == std::string::npos);
    }
}

TEST_CASE("house/files: no file is over 10 MB") {
    for (const auto& file : files_below(root, [](const fs::path&) { return true; })) {
        CAPTURE(fs::relative(file, root).string());
        CHECK(fs::file_size(file) <= 10'000'000);
    }
}

TEST_CASE("house/examples: at most 60 lines, the command first, the output recorded") {
    for (const auto& entry : fs::directory_iterator{root / "examples"}) {
        if (entry.path().extension() != ".cpp") continue;
        CAPTURE(entry.path().filename().string());
        const std::string text = read(entry.path());
        CHECK(std::count(text.begin(), text.end(), '\n') <= 60);
        CHECK(names(text, "^// Run( \\(needs a model\\))?: " + entry.path().stem().string() + "\\b"));
        CHECK(fs::exists(fs::path{entry.path()}.replace_extension(".output")));
    }
}
