// A view of device memory does not become one of the host by assignment.
#include "prism/core/view.hpp"

using namespace prism;
#ifdef PRISM_REFUSED
using Space = device;
#else
using Space = host;
#endif

View<const float, host, dyn> on_host(View<float, Space, dyn> x) { return x; }
