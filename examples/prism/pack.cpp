// pack: a model into one file that opens at once.
#include "files.hpp"
#include "models.hpp"
#include "progress.hpp"

#include "prism/backend/cpu/cpu.hpp"
#include "prism/model/pack.hpp"

#include <atomic>
#include <iostream>

namespace program {

namespace {

using namespace prism;

Packing packing_of(const Model<Cpu>& model) {
    if (const auto* llm = std::get_if<Language<Cpu>>(&model.parts)) return packing(llm->model.llm, llm->tokenizer);
    if (const auto* tower = std::get_if<Tower<Cpu>>(&model.parts)) return packing(*tower);
    return packing(model.vlm());
}

}  // namespace

void run(const Common& common, const Pack& args) {
    const bool stream = args.out == "-";
    expect_one_output(common, args.out);
    Cpu                        cpu = open_backend<Cpu>(common);
    const Model<Cpu>           model = open_model(cpu, common);
    const Packing              file = packing_of(model);
    std::atomic<std::uint64_t> written{0};
    {
        const Progress bar{!common.quiet, "writing " + args.out.string(), static_cast<double>(file.bytes), 1e6, "MB", [&] { return static_cast<double>(written.load()); }};
        if (!stream) written = file.write(args.out, [&](std::uint64_t n) { written = n; });
        else file.write([&](std::span<const std::byte> bytes) {
            std::cout.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
            written += bytes.size();
        }, "standard output");
    }
    if (common.json) print({{"bytes", written.load()}, {"tensors", file.n_tensors}});
    else if (!stream) std::cout << args.out.string() << ": " << file.n_tensors << " tensors, " << written << " bytes\n";
}

}  // namespace program
