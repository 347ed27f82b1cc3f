// The order of the pieces of a sparse block. Experts follow each other in waves: the weights of one are laid out while
// the rows of the one before and the gradients of the one before that are made, so that what lies between them is used
// while it is in a cache, in memory for three experts (`SLOTS`) that the next ones use again.
//
// A piece waits for those that it needs. They all come earlier and each is taken in order, so that somebody is at them.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "training_linear.h"

namespace coterie::COTERIE_ISA {

#if defined(COTERIE_AVX512)

enum class SparseWork { WEIGHTS, ROWS, GRADIENTS };
struct SparsePiece {
  SparseWork work;
  int64_t expert, i;
};

class SparseOrder {
 public:
  static constexpr int64_t SLOTS = 3;

  // counts[work][expert] pieces of each
  explicit SparseOrder(const std::vector<int64_t> (&counts)[3])
      : E_((int64_t)counts[0].size()), left_((size_t)(3 * E_)) {
    for (int64_t wave = 0; wave < E_ + 2; wave++)
      for (int work = 0; work < 3; work++) {
        const int64_t e = wave - work;
        if (e < 0 || e >= E_) continue;
        left(work, e) = counts[work][(size_t)e];
        for (int64_t i = 0; i < counts[work][(size_t)e]; i++) pieces_.push_back({(SparseWork)work, e, i});
      }
  }

  // body(piece, thread) for all of them
  template <class Body>
  void run(Pool& pool, Body&& body) {
    each_piece(pool, (int64_t)pieces_.size(), [&](int64_t i, int thread) {
      const SparsePiece& piece = pieces_[(size_t)i];
      const int work = (int)piece.work;
      if (work > 0) wait(work - 1, piece.expert);
      if (work < 2)  // all who had its place: an expert without rows waits for nobody, so the last one is not enough
        for (int64_t before = piece.expert - SLOTS; before >= 0; before -= SLOTS) wait(work + 1, before);
      body(piece, thread);
      left(work, piece.expert).fetch_sub(1, std::memory_order_release);
    });
  }

 private:
  std::atomic<int64_t>& left(int work, int64_t e) { return left_[(size_t)(work * E_ + e)]; }
  void wait(int work, int64_t e) {
    for (int spins = 0; left(work, e).load(std::memory_order_acquire) > 0; spins++) {
      if (spins < 1000)
        _mm_pause();
      else
        std::this_thread::yield();
    }
  }

  int64_t E_;
  std::vector<std::atomic<int64_t>> left_;
  std::vector<SparsePiece> pieces_;
};

#endif

}  // namespace coterie::COTERIE_ISA
