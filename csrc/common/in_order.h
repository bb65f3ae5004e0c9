// Sums to which many workers contribute, with the same rounding for any number of them.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace torchcorr {

// Each sum takes the contributions of units 0, 1, 2, ... in this order, whichever is ready first.
// One that is early is kept, and the worker goes on; when `most_kept` are kept, it waits. Whoever
// brings the next in turn also adds those that were kept behind it.
class InOrder {
 public:
  using Add = std::function<void()>;

  InOrder(int64_t sums, int64_t most_kept) : sums_(sums), most_kept_(most_kept) {}

  // The worker with the earliest unit never waits, so every unit must contribute to every sum that
  // others wait for, or all must stop.
  void put(int64_t sum, int64_t unit, Add add) {
    std::unique_lock<std::mutex> lock(mutex_);
    Sum& to = sums_[sum];
    changed_.wait(lock, [&] { return stopped_ || to.next == unit || kept_ < most_kept_; });
    if (stopped_) return;
    to.early.emplace(unit, std::move(add));
    ++kept_;
    if (to.busy) return;
    to.busy = true;
    for (auto first = to.early.begin(); first != to.early.end() && first->first == to.next;
         first = to.early.begin()) {
      Add now = std::move(first->second);
      to.early.erase(first);
      lock.unlock();
      now();
      now = nullptr;
      lock.lock();
      ++to.next, --kept_;
      changed_.notify_all();
    }
    to.busy = false;
  }

  // Nothing more is added, and nobody waits.
  void stop() {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }

 private:
  struct Sum {
    int64_t next = 0;
    bool busy = false;
    std::map<int64_t, Add> early;
  };

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Sum> sums_;
  const int64_t most_kept_;
  int64_t kept_ = 0;
  bool stopped_ = false;
};

}  // namespace torchcorr
