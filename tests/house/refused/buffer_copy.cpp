// A buffer has one owner: it moves and is never copied.
#include "prism/core/buffer.hpp"
#include "prism/core/view.hpp"

#include <utility>

using namespace prism;

Buffer<host> take(Buffer<host>& b) {
#ifdef PRISM_REFUSED
    return b;
#else
    return std::move(b);
#endif
}
