// Replicas: questions shared out among several backends.
#include "support/replicas.hpp"

#include "prism/backend/cpu/cpu.hpp"

TEST_CASE("generate/replicas: several answer as one does, in the order of the questions") { prism::test::expect_replicas_alike<prism::Cpu>(); }
