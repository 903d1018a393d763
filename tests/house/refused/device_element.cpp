// Memory of a device is not read element by element on the host.
#include "prism/core/view.hpp"

using namespace prism;
#ifdef PRISM_REFUSED
using Space = device;
#else
using Space = host;
#endif

float first(View<float, Space, dyn, dyn> x) { return x(0, 0); }
