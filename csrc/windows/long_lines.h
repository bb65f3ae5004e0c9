// Windows of long lines, one after the other. The march of engine.h takes the lines of all its lanes
// along, with what it keeps of four windows each, most of it for nothing where a batch has few lines.
#pragma once

#include <vector>

#include "windows/layout.h"

namespace torchcorr {

// A line of a stretch that is loaded or stored piece by piece.
constexpr int64_t kPieceOfLine = 1 << 11;

template <class Policy, class Source, class Sink>
class LongLineWorker {
  using One = Summary<Policy::planes>;

 public:
  LongLineWorker(const WindowLayout& layout, const Source& source, const Sink& sink)
      : layout_(layout), source_(source), sink_(sink), axis_(layout.axis[2]),
        weight_(static_cast<double>(layout.channels)), suffix_(axis_.block),
        elements_(Policy::planes * kPieceOfLine), results_(Policy::planes * kPieceOfLine) {}

  // Units are stretches of lines that begin with a block of windows.
  void run(int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      first_ = behind_ = 0;
      One prefix{};
      const Rows out{results_.data(), kPieceOfLine};
      window_march(
          axis_, 0, layout_.strip,
          [&](int64_t x, int64_t slot, int64_t k) {
            const One one = element(unit, x);
            suffix_[slot] = k == 1 ? one : Policy::merge_one(suffix_[slot + 1], k - 1, one, 1, weight_);
          },
          [&](int64_t x, int64_t k) {
            const One one = element(unit, x);
            prefix = k == 1 ? one : Policy::merge_one(prefix, k - 1, one, 1, weight_);
          },
          [&](int64_t i, int64_t slot, int64_t na, int64_t nb) {
            One whole = suffix_[slot];
            if (nb > 0) whole = Policy::merge_one(whole, na, prefix, nb, weight_);
            Policy::mark_non_finite(whole);
            const int64_t at = i % kPieceOfLine;
            for (int p = 0; p < Policy::planes; ++p) out.plane(p)[at] = whole[p];
            if (at + 1 == kPieceOfLine || i + 1 == layout_.strip) {
              sink_.store(locate(layout_, 0, 0, unit, i - at, at + 1, true), out);
            }
          });
    }
  }

 private:
  TORCHCORR_INLINE One element(int64_t unit, int64_t x) {
    if (x < first_ || x >= behind_) load(unit, x);
    One one;
    for (int p = 0; p < Policy::planes; ++p) one[p] = elements_[p * kPieceOfLine + x - first_];
    return one;
  }

  void load(int64_t unit, int64_t x) {
    first_ = x / kPieceOfLine * kPieceOfLine;
    behind_ = std::min(first_ + kPieceOfLine, axis_.size);
    const int64_t n = behind_ - first_;
    source_.load(locate(layout_, 0, 0, unit, first_, n, false), n, {elements_.data(), kPieceOfLine});
  }

  const WindowLayout& layout_;
  const Source& source_;
  const Sink& sink_;
  const WindowAxis axis_;
  const double weight_;
  std::vector<One> suffix_;
  std::vector<double> elements_, results_;
  int64_t first_ = 0, behind_ = 0;  // elements of the stretch that are loaded
};

}  // namespace torchcorr
