#include "everything.hpp"

/// Defined in the other source; both include every header, so a definition that is not inline fails to link.
int other();

int main() { return other(); }
