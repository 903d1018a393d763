// What the commands need of a backend besides what modules do: to be opened as the options ask, and to tell how far it is.
#pragma once

#include "commands.hpp"

#include "prism/backend/concept.hpp"
#include "prism/backend/cpu/isa.hpp"

#include <concepts>
#include <functional>

namespace program {

/// The backend that the options ask for. Throws ConfigError, or DeviceError where there is no device.
template <prism::Backend B>
B open_backend(const Common& common) {
    const auto compute = common.compute == "fast" ? prism::Compute::fast : prism::Compute::exact;
    if constexpr (std::same_as<typename B::space, prism::host>)
        return B{{.threads = common.threads, .isa = common.isa.empty() ? prism::best_isa() : prism::isa_from_name(common.isa), .compute = compute}};
    else
        return B{{.compute = compute}};
}

/// Tells from any thread how many operations have been done from now on. Nothing on a device, which is given its work long
/// before it does it: progress shows the time alone there.
template <prism::Backend B>
std::function<double()> operations_of(const B& be) {
    if constexpr (std::same_as<typename B::space, prism::host>)
        return [&be, before = be.flops_done()] { return static_cast<double>(be.flops_done() - before); };
    else
        return {};
}

}  // namespace program
