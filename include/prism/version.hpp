// The version of the library. prism/prism.hpp includes it; a source that needs nothing else may include it alone.
#pragma once

namespace prism {

inline constexpr const char* version = "0.1.0";

}  // namespace prism
