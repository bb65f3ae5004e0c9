// The parts of the stable ABI that every kernel uses, and how a function is compiled for several
// CPUs.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

// Clones are chosen when the library is loaded, which needs the GNU loader's ifunc.
#if defined(TORCHCORR_CLONES)
// Defined on the command line: a build with sanitizers has no clones.
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define TORCHCORR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TORCHCORR_CLONES
#endif

#if !defined(TORCHCORR_INLINE)
#define TORCHCORR_INLINE inline __attribute__((always_inline))
#endif

// A lambda that is compiled for the CPU of the function around it.
#if defined(__GNUC__)
#define TORCHCORR_FLAT __attribute__((always_inline))
#else
#define TORCHCORR_FLAT
#endif

namespace torchcorr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline Tensor packed(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

inline int32_t stable_number_of(ScalarType type) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
}

// Strides of a contiguous tensor.
inline Sizes packed_strides(const Sizes& shape) {
  Sizes strides(shape.size());
  int64_t elements = 1;
  for (size_t i = shape.size(); i-- > 0; elements *= std::max<int64_t>(1, shape[i])) {
    strides[i] = elements;
  }
  return strides;
}

// A tensor in the memory of the CPU, with elements that are anything. `new_empty` of the stable ABI
// goes through the dispatcher, which takes three times as long.
inline Tensor new_tensor(const Sizes& shape, ScalarType type) {
  const Sizes strides = packed_strides(shape);
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.data(), strides.data(), stable_number_of(type),
      aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

inline Tensor new_tensor(const Tensor& like, const Sizes& shape) {
  return new_tensor(shape, like.scalar_type());
}

inline Tensor new_float64(const Sizes& shape) { return new_tensor(shape, ScalarType::Double); }

inline bool is_half(const Tensor& x) {
  return x.scalar_type() == ScalarType::Half || x.scalar_type() == ScalarType::BFloat16;
}

inline Tensor in_float32(const Tensor& x) { return torch::stable::to(x, ScalarType::Float); }

inline Tensor in_type_of(const Tensor& like, const Tensor& x) {
  return torch::stable::to(x, like.scalar_type());
}

// Calls f with a zero of the tensor's element type.
template <class F>
void with_real_type(const Tensor& x, const char* name, const F& f) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, name,
                  " must be float32 or float64");
  if (type == ScalarType::Float) {
    f(float{});
  } else {
    f(double{});
  }
}

}  // namespace torchcorr
