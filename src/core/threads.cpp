#include "core/threads.h"

#include <omp.h>

#include <algorithm>

namespace moe {

int usable_threads() {
  return std::max(1, omp_get_num_procs());
}

}  // namespace moe
