// Memory of a device is not a span of the host.
#include "prism/core/view.hpp"

using namespace prism;
#ifdef PRISM_REFUSED
using Space = device;
#else
using Space = host;
#endif

float first(View<float, Space, dyn> x) { return x.span()[0]; }
