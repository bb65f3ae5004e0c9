// Memory that begins a cache line, so that no vector of it lies in two.
#pragma once

#include <new>
#include <vector>

namespace torchcorr::direct {

template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{64};

  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kAlignment)); }
  template <class U>
  void construct(U* p) { ::new (static_cast<void*>(p)) U; }  // not zero: all will be written
  template <class U>
  void construct(U* p, const U& value) { ::new (static_cast<void*>(p)) U(value); }
  void deallocate(T* p, size_t) { ::operator delete(p, kAlignment); }
  bool operator==(const LineAllocator&) const { return true; }
};

template <class T>
using LineVector = std::vector<T, LineAllocator<T>>;

}  // namespace torchcorr::direct
