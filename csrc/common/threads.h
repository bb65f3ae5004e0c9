// The threads that share the parts of a call: PyTorch's, or own ones where PyTorch's come late.
//
// PyTorch's are OpenMP's. They poll for the next call, which begins at once on a quiet machine. Where
// other programs want the cores, they lose theirs for whole time slices, and every call waits until all
// have come back, also those for which nothing is left to do. Own threads sleep, and nobody waits for one
// that has not begun.
#pragma once

#include <cstdint>

namespace torchcorr {

// A function of the number of a part, which must outlive this reference to it.
class Parts {
 public:
  template <class F>
  Parts(const F& f)
      : function_(&f),
        call_([](const void* function, int64_t part) { (*static_cast<const F*>(function))(part); }) {}

  void operator()(int64_t part) const { call_(function_, part); }

 private:
  const void* function_;
  void (*call_)(const void*, int64_t);
};

// On how many threads this one may share a call: PyTorch's number, and one inside a part.
int64_t threads_to_share();

// Calls f(part) for all parts on so many threads, which take one after another. PyTorch's operators
// inside a part use no other thread.
void share(int64_t parts, const Parts& f);

}  // namespace torchcorr
