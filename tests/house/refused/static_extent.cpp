// A view with one fixed extent is not one with another.
#include "prism/core/view.hpp"

using namespace prism;
#ifdef PRISM_REFUSED
inline constexpr std::size_t wanted = 3;
#else
inline constexpr std::size_t wanted = 4;
#endif

View<float, host, dyn, wanted> same(View<float, host, dyn, 4> x) { return x; }
