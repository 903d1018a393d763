// Rows belong to matrices: a vector has none.
#include "prism/core/view.hpp"

using namespace prism;

#ifdef PRISM_REFUSED
std::size_t rows(View<float, host, dyn> x) { return x.rows(); }
#else
std::size_t rows(View<float, host, dyn, dyn> x) { return x.rows(); }
#endif
