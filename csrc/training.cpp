#include "training.h"

#include <cstddef>
#include <vector>

namespace coterie {

int64_t sort_pairs(const int32_t* ids, int64_t T, int64_t S, int64_t E, int64_t* pairs, int64_t* tokens,
                   int64_t* places, int64_t* counts) {
  std::vector<int64_t> next((std::size_t)E + 1, 0);
  for (int64_t i = 0; i < T * S; i++) {
    if (ids[i] >= E) return -1;
    if (ids[i] >= 0) next[(std::size_t)ids[i] + 1]++;
  }
  for (int64_t e = 0; e < E; e++) {
    counts[e] = next[(std::size_t)e + 1];
    next[(std::size_t)e + 1] += next[(std::size_t)e];
  }
  for (int64_t i = 0; i < T * S; i++) {
    places[i] = ids[i] < 0 ? -1 : next[(std::size_t)ids[i]]++;
    if (places[i] >= 0) pairs[places[i]] = i, tokens[places[i]] = i / S;
  }
  return E ? next[(std::size_t)E - 1] : 0;
}

}  // namespace coterie
