// The commands that compute, on the processor.
#include "answers.hpp"
#include "bench.hpp"
#include "features.hpp"
#include "logits.hpp"
#include "machine_cpu.hpp"

#include "prism/backend/cpu/cpu.hpp"

namespace program {

void run(const Common& common, const Ask& args) { run_on<prism::Cpu>(common, args); }
void run(const Common& common, const Chat& args) { run_on<prism::Cpu>(common, args); }
void run(const Common& common, const Score& args) { run_on<prism::Cpu>(common, args); }
void run(const Common& common, const Act& args) { run_on<prism::Cpu>(common, args); }
void run(const Common& common, const Features& args) { run_on<prism::Cpu>(common, args); }
void run(const Common& common, const Logits& args) { run_on<prism::Cpu>(common, args); }
void run(const Common& common, const Bench& args) { run_on<prism::Cpu>(common, args); }

}  // namespace program
