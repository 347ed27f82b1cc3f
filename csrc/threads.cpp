#include "threads.h"

#include <chrono>
#include <cstdlib>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace coterie {

namespace {

// Between the passes of a sequence lies some Python. A thread that sleeps there is woken on its waker's own core and
// waits for the scheduler to move it, which took 4 ms a token; so it stays up for a while, and lets others run
// meanwhile.
constexpr int N_PAUSES = 2000;
constexpr auto PATIENCE = std::chrono::milliseconds(2);

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int n_threads, Team team)
    : n_threads_(n_threads), team_(team), scratch_((size_t)n_threads * N_KINDS) {
  for (int t = 1; !team && t < n_threads_; t++) threads_.emplace_back([this, t] { loop(t); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stops_ = true;
    ticket_ += (uint64_t)1 << 32;
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

void Pool::run_on_team(int64_t n, int64_t chunk, Invoke invoke, void* body) {
  struct Job {
    int64_t n, chunk;
    Invoke invoke;
    void* body;
    std::atomic<int64_t> next{0};
    std::atomic<int> n_threads{0};
  } job{n, chunk, invoke, body};
  const auto take = [](void* data) {
    auto& j = *(Job*)data;
    const int thread = j.n_threads.fetch_add(1, std::memory_order_relaxed);
    for (int64_t begin; (begin = j.next.fetch_add(j.chunk, std::memory_order_relaxed)) < j.n;)
      j.invoke(j.body, begin, begin + j.chunk < j.n ? begin + j.chunk : j.n, thread);
  };
  team_(take, &job, (unsigned)n_threads_, 0);
}

void Pool::run_all(int64_t n, int64_t chunk, Invoke invoke, void* body) {
  if (team_) return run_on_team(n, chunk, invoke, body);
  n_ = n, chunk_ = chunk, n_chunks_ = (n + chunk - 1) / chunk, invoke_ = invoke, body_ = body;
  n_done_.store(0, std::memory_order_relaxed);
  const uint32_t job = (uint32_t)(ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store((uint64_t)job << 32 | (uint64_t)n_chunks_, std::memory_order_seq_cst);
  if (n_asleep_.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }
  work(job, 0);
  for (int spins = 0; n_done_.load(std::memory_order_acquire) < n_chunks_; spins++) {
    if (spins < N_PAUSES)
      relax();
    else
      std::this_thread::yield();
  }
}

void Pool::work(uint32_t job, int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while ((uint32_t)(ticket >> 32) == job && (uint32_t)ticket > 0) {
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
    const int64_t begin = (n_chunks_ - (int64_t)(uint32_t)ticket) * chunk_;
    invoke_(body_, begin, begin + chunk_ < n_ ? begin + chunk_ : n_, thread);
    n_done_.fetch_add(1, std::memory_order_release);
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void Pool::loop(int thread) {
  uint32_t seen = 0;
  const auto current = [&] { return (uint32_t)(ticket_.load(std::memory_order_seq_cst) >> 32); };
  for (;;) {
    int spins = 0;
    std::chrono::steady_clock::time_point until;
    while (current() == seen) {
      if (++spins < N_PAUSES) {
        relax();
        continue;
      }
      const auto now = std::chrono::steady_clock::now();
      if (spins == N_PAUSES) until = now + PATIENCE;
      if (now < until) {
        std::this_thread::yield();
        continue;
      }
      std::unique_lock<std::mutex> lock(mutex_);
      n_asleep_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return current() != seen; });
      n_asleep_.fetch_sub(1, std::memory_order_seq_cst);
    }
    seen = current();
    if (stops_) return;
    work(seen, thread);
  }
}

}  // namespace coterie
