// A read-only view does not become a writable one.
#include "prism/core/view.hpp"

using namespace prism;
#ifdef PRISM_REFUSED
using T = const float;
#else
using T = float;
#endif

View<float, host, dyn, dyn> writable(View<T, host, dyn, dyn> x) { return x; }
