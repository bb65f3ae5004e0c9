#include "common/threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "common/tensors.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace torchcorr {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// Whether this thread is inside a part.
thread_local bool inside = false;
class Inside {
 public:
  Inside() { inside = true; }
  ~Inside() { inside = false; }
};

// What sets the numbers of threads of the libraries that PyTorch uses, for the calling thread.
struct ThreadNumbers {
  void (*openmp)(int) = nullptr;
  int (*mkl)(int) = nullptr;  // returns the number before
  bool are_bound = false;     // each thread to a core, which own ones would inherit

  static const ThreadNumbers& found() {
    static const ThreadNumbers numbers = [] {
      ThreadNumbers some;
      Dl_info torch;
      if (dladdr(reinterpret_cast<void*>(&torch_get_num_threads), &torch) == 0) return some;
      void* library = dlopen(torch.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
      if (library == nullptr) return some;
      some.mkl = reinterpret_cast<int (*)(int)>(dlsym(library, "MKL_Set_Num_Threads_Local"));
      const auto set = reinterpret_cast<void (*)(int)>(dlsym(library, "omp_set_num_threads"));
      const auto bound = reinterpret_cast<int (*)()>(dlsym(library, "omp_get_proc_bind"));
      if (set == nullptr) return some;
      some.are_bound = bound != nullptr && bound() != 0;
      // There may be several libraries of this kind, of which PyTorch uses another.
      const auto before = static_cast<int>(torch::stable::get_num_threads());
      set(1);
      if (torch::stable::get_num_threads() == 1) some.openmp = set;
      set(before);
      return some;
    }();
    return numbers;
  }
};

// Keeps MKL to the calling thread. PyTorch may have told it to divide a transform also inside a part,
// and then it is rounded in another way.
class OneThreadOfMkl {
 public:
  OneThreadOfMkl() {
    // PyTorch sets the number of a new thread when it is first asked or used.
    torch::stable::get_num_threads();
    if (set_) before_ = set_(1);
  }
  ~OneThreadOfMkl() {
    if (set_) set_(before_);
  }
  OneThreadOfMkl(const OneThreadOfMkl&) = delete;
  OneThreadOfMkl& operator=(const OneThreadOfMkl&) = delete;

 private:
  int (*const set_)(int) = ThreadNumbers::found().mkl;
  int before_ = 0;
};

// Keeps all of PyTorch's operators to the calling thread.
class OneThread {
 public:
  static bool is_possible() { return ThreadNumbers::found().openmp != nullptr; }

  OneThread() : before_(torch::stable::get_num_threads()) { ThreadNumbers::found().openmp(1); }
  ~OneThread() { ThreadNumbers::found().openmp(static_cast<int>(before_)); }
  int64_t before() const { return before_; }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  const uint32_t before_;
  const OneThreadOfMkl of_mkl_;
};

// The parts of one call, on the stack of its caller.
struct Job {
  const int64_t parts;
  const Parts& f;
  int64_t wanted;  // threads that may still begin to help
  std::atomic<int64_t> next{0}, helpers{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  bool is_open() const { return wanted > 0 && next.load(std::memory_order_relaxed) < parts; }
  void work() {
    const Inside here;
    for (int64_t part = next++; part < parts && !failed; part = next++) {
      try {
        f(part);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
  }
};

// Own threads, which help whoever has a job and sleep soon when there is none. No call waits for one
// that has not begun. A pool is never destroyed, since its threads live as long as the process.
class Pool {
 public:
  // The pool of this process.
  static Pool*& current() {
    static Pool* pool = new Pool;
    return pool;
  }

  // How long the caller waited in the end, beyond the time in which it worked itself: what helpers
  // cost more than they spare.
  Clock::duration run(Job& job) {
    const Clock::time_point begin = Clock::now();
    int64_t to_wake = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      start(job.wanted);
      jobs_.push_back(&job);
      posted_.fetch_add(1, std::memory_order_release);
      to_wake = std::min(asleep_, job.wanted);
    }
    for (; to_wake > 0; --to_wake) work_.notify_one();
    {
      const OneThread here;
      job.work();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
    const auto is_done = [&] { return job.helpers.load(std::memory_order_acquire) == 0; };
    if (is_done()) return Clock::duration::zero();
    const Clock::time_point own_end = Clock::now();
    lock.unlock();
    if (!came_soon(is_done)) {
      lock.lock();
      done_.wait(lock, is_done);
    }
    return Clock::now() - own_end - (own_end - begin);
  }

 private:
  // As many threads as the system lets start.
  void start(int64_t wanted) {
    try {
      for (; threads_ < wanted; ++threads_) std::thread([this] { help(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  // Whether it was so within a time that is short even where others want the core.
  template <class Condition>
  static bool came_soon(const Condition& condition) {
    const auto end = Clock::now() + microseconds(50);
    do {
      if (condition()) return true;
    } while (Clock::now() < end);
    return false;
  }

  Job* open_job() const {
    const auto found = std::find_if(jobs_.begin(), jobs_.end(), [](Job* j) { return j->is_open(); });
    return found == jobs_.end() ? nullptr : *found;
  }

  // What a thread of the pool does.
  [[noreturn]] void help() {
    const OneThread here;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (Job* job = open_job()) {
        --job->wanted;
        job->helpers.fetch_add(1, std::memory_order_relaxed);
        lock.unlock();
        job->work();
        lock.lock();
        // From here on the caller may return, and the job is no more.
        if (job->helpers.fetch_sub(1, std::memory_order_release) == 1) done_.notify_all();
        continue;
      }
      const uint64_t seen = posted_.load(std::memory_order_relaxed);
      const auto is_new = [&] { return posted_.load(std::memory_order_acquire) != seen; };
      lock.unlock();
      const bool soon = came_soon(is_new);
      lock.lock();
      if (soon) continue;
      ++asleep_;
      work_.wait(lock, is_new);
      --asleep_;
    }
  }

  std::mutex mutex_;  // of all that follows, and of `wanted` and `helpers` of the jobs
  std::condition_variable work_, done_;
  std::vector<Job*> jobs_;
  std::atomic<uint64_t> posted_{0};
  int64_t threads_ = 0, asleep_ = 0;
};

// Threads are late if a call waited longer for them than for one that has to wake up. Then they are
// not called for a while, and for twice as long if they are late again after it.
class Patience {
 public:
  static bool is_lost(Clock::duration wait) { return wait > microseconds(2000); }

  bool is_over() const { return Clock::now() >= until_.load(); }
  void note(bool late) {
    const Clock::duration period = period_.load();
    if (late) until_.store(Clock::now() + period);
    period_.store(late ? std::min<Clock::duration>(2 * period, kLongest)
                       : std::max<Clock::duration>(period / 2, kShortest));
  }
  void end_for_ever() { until_.store(Clock::time_point::max()); }

 private:
  static constexpr microseconds kShortest{50'000}, kLongest{500'000};

  std::atomic<Clock::time_point> until_{Clock::time_point::min()};
  std::atomic<Clock::duration> period_{kShortest};
};

// Whether PyTorch's threads are called, of which all take part in every call.
class ThreadsOfTorch {
 public:
  bool are_called() const { return !late_ || patience_.is_over(); }
  void are_always_late() { late_ = true, patience_.end_for_ever(); }
  void note(Clock::duration wait) {
    const bool late = Patience::is_lost(wait);
    if (!late && !late_) return;
    late_ = late;
    patience_.note(late);
  }

 private:
  std::atomic<bool> late_{false};
  Patience patience_;
};

// How many own threads help.
class Helpers {
 public:
  // No more than were in time, until more are worth a try again.
  int64_t allowed(int64_t wanted) const {
    const int64_t most = most_.load();
    return std::min(wanted, patience_.is_over() ? 2 * most + 1 : most);
  }
  // If they were late, the next calls have half of them.
  void note(int64_t helpers, Clock::duration wait) {
    const bool late = Patience::is_lost(wait);
    if (!late && helpers <= most_.load()) return;
    most_.store(late ? helpers / 2 : helpers);
    patience_.note(late);
  }

 private:
  static constexpr int64_t kAny = 1 << 30;

  std::atomic<int64_t> most_{kAny};
  Patience patience_;
};

ThreadsOfTorch of_torch;
Helpers of_pool;

// Which threads worked last. Each has an arena of freed memory that others do not use, so when others
// take over, it goes back to the system, but for what lies at its end.
class Kind {
 public:
  void note(bool own) {
    if (own_.load(std::memory_order_relaxed) == own || own_.exchange(own) == own) return;
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
  }

 private:
  std::atomic<bool> own_{false};
};

Kind kind;

// On PyTorch's threads: it waits for all of them, also for those that come when nothing is left.
void run_on_threads_of_torch(Job& job) {
  const Clock::time_point begin = Clock::now();
  std::atomic<Clock::duration> last_begin{Clock::duration::zero()}, last_end{last_begin.load()};
  const auto raise = [&](std::atomic<Clock::duration>& latest) {
    const Clock::duration now = Clock::now() - begin;
    Clock::duration known = latest.load(std::memory_order_relaxed);
    while (known < now && !latest.compare_exchange_weak(known, now, std::memory_order_relaxed)) {
    }
  };
  torch::stable::parallel_for(0, job.wanted + 1, 1, [&](int64_t, int64_t) {
    raise(last_begin);
    {
      const OneThreadOfMkl here;
      job.work();
    }
    raise(last_end);
  });
  const Clock::duration all = Clock::now() - begin;
  of_torch.note(std::max(last_begin.load(), all - last_end.load()));
}

// OpenMP waits for ever for threads that a fork does not have. The first pool is there before any fork.
const bool kHasPool = Pool::current() != nullptr;
const int kPreparedForForks = pthread_atfork(nullptr, nullptr, [] {
  Pool::current() = new Pool;
  of_torch.are_always_late();
});

bool may_choose() { return OneThread::is_possible() && !ThreadNumbers::found().are_bound; }

// Of an engine's call while PyTorch's threads are late: its small operators run on one, too.
thread_local std::optional<OneThread> held;

// Whether the caller is to release them. In a call inside another that is the outer one, unless the
// reason has gone meanwhile: so a hold that an interrupted call left behind ends with a later one.
bool hold_threads(const Tensor&) {
  if (held) return of_torch.are_called();
  if (inside || !may_choose() || of_torch.are_called() || threads_to_share() == 1) return false;
  held.emplace();
  return true;
}

void release_threads(const Tensor&) { held.reset(); }

// PyTorch's threads are never called on demand, and under a sanitizer with which they are not built.
const bool kOnlyOwn = [] {
#if defined(__SANITIZE_THREAD__)
  const bool only = true;
#else
  const bool only = std::getenv("TORCHCORR_OWN_THREADS") != nullptr;
#endif
  if (only) of_torch.are_always_late();
  return only;
}();

}  // namespace

int64_t threads_to_share() {
  if (inside) return 1;
  return held ? held->before() : torch::stable::get_num_threads();
}

void share(int64_t parts, const Parts& f) {
  if (inside) {
    for (int64_t part = 0; part < parts; ++part) f(part);
    return;
  }
  if (parts <= 0) return;
  Job job{parts, f, std::min(threads_to_share(), parts) - 1};
  const bool alone = job.wanted == 0 && OneThread::is_possible();
  if (!alone && (!may_choose() || (!held && of_torch.are_called()))) {
    job.wanted = std::max<int64_t>(1, job.wanted);  // since PyTorch divides a transform of one part
    kind.note(false);
    run_on_threads_of_torch(job);
  } else {
    if (!kOnlyOwn) job.wanted = of_pool.allowed(job.wanted);
    const int64_t helpers = job.wanted;
    if (helpers > 0) {
      kind.note(true);
      of_pool.note(helpers, Pool::current()->run(job));
    } else {
      const OneThread here;
      job.work();
    }
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace torchcorr

STABLE_TORCH_LIBRARY_IMPL(torchcorr_cpu, CPU, m) {
  m.impl("hold_threads", TORCH_BOX(&torchcorr::hold_threads));
  m.impl("release_threads", TORCH_BOX(&torchcorr::release_threads));
}
