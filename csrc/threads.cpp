#include "threads.h"

#include <cstdlib>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace coterie {

namespace {

constexpr int N_SPINS =
    20000;  // about 0.2 ms: longer than the pause between two calls of a pass, shorter than one is felt

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int n_threads) : n_threads_(n_threads), scratch_((size_t)n_threads * N_KINDS) {
  for (int t = 1; t < n_threads_; t++) threads_.emplace_back([this, t] { loop(t); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stops_ = true;
    generation_++;
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
  for (auto& s : scratch_) std::free(s.data);
}

uint8_t* Pool::scratch(int thread, int kind, int64_t bytes) {
  Scratch& s = scratch_[(size_t)thread * N_KINDS + kind];
  if (s.bytes < bytes) {
    std::free(s.data);
    s.bytes = 0;
    const int64_t rounded = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    s.data = (uint8_t*)std::aligned_alloc(4096, (size_t)rounded);
    if (!s.data) throw std::bad_alloc();
    s.bytes = rounded;
  }
  return s.data;
}

void Pool::run_all(int64_t n, int64_t chunk, Invoke invoke, void* body) {
  n_ = n, chunk_ = chunk, invoke_ = invoke, body_ = body;
  next_.store(0, std::memory_order_relaxed);
  n_busy_.store(n_threads_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_seq_cst);
  if (n_asleep_.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }
  work(0);
  for (int spins = 0; n_busy_.load(std::memory_order_acquire) > 0; spins++) {
    if (spins < N_SPINS)
      relax();
    else
      std::this_thread::yield();
  }
}

void Pool::work(int thread) {
  for (;;) {
    const int64_t begin = next_.fetch_add(chunk_, std::memory_order_relaxed);
    if (begin >= n_) return;
    invoke_(body_, begin, begin + chunk_ < n_ ? begin + chunk_ : n_, thread);
  }
}

void Pool::loop(int thread) {
  uint64_t seen = 0;
  for (;;) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      if (++spins < N_SPINS) {
        relax();
        continue;
      }
      std::unique_lock<std::mutex> lock(mutex_);
      n_asleep_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_seq_cst) != seen; });
      n_asleep_.fetch_sub(1, std::memory_order_seq_cst);
    }
    seen++;
    if (stops_) return;
    work(thread);
    n_busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace coterie
