// tokenize, detokenize: text to token ids and back.
#include "files.hpp"

#include "prism/model/pretrained.hpp"
#include "prism/text/tokenizer.hpp"

#include <cstdint>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

namespace program {

namespace {

using namespace prism;

Tokenizer open_tokenizer(const Common& common) {
    return tokenizer_from_pretrained(model_folder(common), {.vision_dir = common.vision_dir, .llm_dir = common.llm_dir});
}

/// The items of a JSON array. Throws ConfigError that says what is there instead.
const Json::array_t& items(const Json& json, const std::string& what, const std::string& allowed) {
    if (!json.is_array()) throw ConfigError{what, json.type_name(), allowed};
    return json.get_ref<const Json::array_t&>();
}

std::int32_t id_of(const Json& json) {
    if (json.is_number_integer() && json >= std::numeric_limits<std::int32_t>::min() && json <= std::numeric_limits<std::int32_t>::max())
        return json.get<std::int32_t>();
    throw ConfigError{"--in", json.dump(-1, ' ', true, Json::error_handler_t::replace), "token ids, integers of 32 bits"};
}

}  // namespace

void run(const Common& common, const Tokenize& args) {
    const Tokenizer tokenizer = open_tokenizer(common);
    const Json      texts = open_json(args.in);
    Json            all = Json::array();
    for (const Json& text : items(texts, "--in", "an array of strings")) {
        if (!text.is_string()) throw ConfigError{"--in", text.type_name(), "an array of strings"};
        all.push_back(tokenizer.encode(text.get_ref<const std::string&>(), {.add_special = !args.no_special, .parse_special = !args.plain}));
    }
    if (common.json) return print(all);
    for (const Json& ids : all) print(ids);
}

void run(const Common& common, const Detokenize& args) {
    const Tokenizer tokenizer = open_tokenizer(common);
    const Json      lists = open_json(args.in);
    Json            all = Json::array();
    for (const Json& list : items(lists, "--in", "an array of arrays of ids")) {
        std::vector<std::int32_t> ids;
        for (const Json& id : items(list, "--in", "an array of arrays of ids")) ids.push_back(id_of(id));
        all.push_back(tokenizer.decode(ids, {.skip_special = args.skip_special}));
    }
    if (common.json) return print(all);
    for (const Json& text : all) std::cout << text.get_ref<const std::string&>() << '\n';
}

}  // namespace program
