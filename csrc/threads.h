// A pool of threads that share the work of a call: chunks are taken one at a time, so none waits for a slow one. A call
// ends when its chunks are done; a thread that the system has not woken by then has missed it, and nobody waits for it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace coterie {

class Pool {
 public:
  // How to run f(data) on n threads at once: `GOMP_parallel` of the OpenMP runtime of a library that shares the call.
  using Team = void (*)(void (*f)(void*), void* data, unsigned n, unsigned flags);

  // With a team its threads do the work, and none are made here: two sets of threads that wait in turn for work keep
  // each other from the cores.
  explicit Pool(int n_threads, Team team = nullptr);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return n_threads_; }
  Team team() const { return team_; }

  // body(begin, end, thread) for ranges of at most `chunk` that cover 0..n-1; returns when all are done.
  template <class Body>
  void run(int64_t n, int64_t chunk, Body&& body) {
    if (n <= 0) return;
    if (n <= chunk || n_threads_ == 1) {
      body((int64_t)0, n, 0);
      return;
    }
    run_all(n, chunk, [](void* b, int64_t begin, int64_t end, int thread) { (*(Body*)b)(begin, end, thread); }, &body);
  }

  static constexpr int PASS = 8;  // the kind of scratch of a whole pass; kernels use 0..7

  // Memory of a thread that stays for the next call; one piece for each `kind`.
  uint8_t* scratch(int thread, int kind, int64_t bytes);

 private:
  using Invoke = void (*)(void*, int64_t, int64_t, int);
  struct Scratch {
    uint8_t* data = nullptr;
    int64_t bytes = 0;
  };
  static constexpr int N_KINDS = 9;

  void run_all(int64_t n, int64_t chunk, Invoke invoke, void* body);
  void run_on_team(int64_t n, int64_t chunk, Invoke invoke, void* body);
  void work(uint32_t job, int thread);
  void loop(int thread);

  int n_threads_;
  Team team_;
  std::vector<std::thread> threads_;
  std::vector<Scratch> scratch_;
  // The job: written before `ticket_` names it, and left alone while one of its chunks is being done.
  int64_t n_ = 0, chunk_ = 1, n_chunks_ = 0;
  Invoke invoke_ = nullptr;
  void* body_ = nullptr;
  // The number of the job in the upper half, chunks that nobody has taken in the lower: taken together, so that who
  // comes late takes nothing from the next job.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> n_done_{0};
  std::atomic<bool> stops_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> n_asleep_{0};
};

}  // namespace coterie
