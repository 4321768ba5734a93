// A dense layer of a few images: y[n, o] = sum over i of w[o, i] * x[n, i], then bias and ReLU.
// Each value is summed in the same order whatever else is computed beside it.
#pragma once

#include "spans.h"

namespace fastcnn::FASTCNN_ISA {

// The blocks of BLOCK lanes of a, then b's, each with its halves added: blocks half as long.
template <int BLOCK, int... i>
inline Vec<float> add_halves(Vec<float> a, Vec<float> b, std::integer_sequence<int, i...>) {
  constexpr int H = BLOCK / 2;
  return __builtin_shufflevector(a, b, (i / H * BLOCK + i % H)...) +
         __builtin_shufflevector(a, b, (i / H * BLOCK + i % H + H)...);
}

// The sum of each vector's lanes, COUNT of them, in as few steps as it takes; in the same order
// for any COUNT.
template <int COUNT, int BLOCK = lanes<float>>
inline void lane_sums(Vec<float>* v, float* out) {
  constexpr auto all = std::make_integer_sequence<int, lanes<float>>();
  if constexpr (COUNT > lanes<float>) {
    lane_sums<COUNT / 2>(v, out);
    lane_sums<COUNT / 2>(v + COUNT / 2, out + COUNT / 2);
  } else if constexpr (BLOCK > 1) {
    constexpr int LEFT = COUNT > 1 ? COUNT / 2 : 1;
    for (int k = 0; k < LEFT; ++k)
      v[k] = add_halves<BLOCK>(v[k * COUNT / LEFT], v[k * COUNT / LEFT + (COUNT > 1)], all);
    lane_sums<LEFT, BLOCK / 2>(v, out);
  } else {
    store(out, v[0]);
  }
}

constexpr int64_t kVectorsAtOnce = 64;  // in one sum: longer ones lose digits

// x: (images, inputs); weight: (outputs, inputs); bias: (outputs,) or null; y: (images, outputs).
struct DenseTask {
  const float *x, *weight, *bias;
  float* y;
  int64_t inputs, outputs;
  bool relu;

  // ROWS outputs, from o on, of IMAGES images, from n on.
  template <int IMAGES, int ROWS>
  void tile(int64_t n, int64_t o) const {
    float values[IMAGES * ROWS] = {};
    for (int64_t from = 0; from < inputs; from += kVectorsAtOnce * lanes<float>)
      add_products<IMAGES, ROWS>(n, o, from, values);
    for (int m = 0; m < IMAGES; ++m)
      for (int r = 0; r < ROWS; ++r) {
        const float v = values[m * ROWS + r] + (bias ? bias[o + r] : 0.f);
        y[(n + m) * outputs + o + r] = relu && v < 0 ? 0.f : v;
      }
  }

  // Adds to values what kVectorsAtOnce vectors of inputs give, from input `from` on.
  template <int IMAGES, int ROWS>
  void add_products(int64_t n, int64_t o, int64_t from, float* values) const {
    constexpr int L = lanes<float>;
    const int64_t end = std::min(inputs, from + kVectorsAtOnce * L);
    const float *images = x + n * inputs, *rows = weight + o * inputs;
    Vec<float> sums[IMAGES * ROWS] = {};
    const auto add = [&](auto take, int64_t i) FASTCNN_INLINE {
      Vec<float> ws[ROWS];
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) ws[r] = take(rows + r * inputs + i);
#pragma GCC unroll 8
      for (int m = 0; m < IMAGES; ++m) {
        const Vec<float> v = take(images + m * inputs + i);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) sums[m * ROWS + r] += ws[r] * v;
      }
    };
    int64_t i = from;
    for (; i + L <= end; i += L) add([](const float* p) { return load<Vec<float>>(p); }, i);
    if (i < end) add([n = end - i](const float* p) { return load_first<Vec<float>>(p, n); }, i);
    float parts[std::max(IMAGES * ROWS, L)];
    lane_sums<IMAGES * ROWS>(sums, parts);
    for (int k = 0; k < IMAGES * ROWS; ++k) values[k] += parts[k];
  }

  template <int IMAGES>
  void images(int64_t n) const {
    constexpr int ROWS = IMAGES == 4 ? 4 : 8;
    int64_t o = 0;
    for (; o + ROWS <= outputs; o += ROWS) tile<IMAGES, ROWS>(n, o);
    for (; o < outputs; ++o) tile<IMAGES, 1>(n, o);
  }

  void run(int64_t count) const {
    int64_t n = 0;
    for (; n + 4 <= count; n += 4) images<4>(n);
    for (; n < count; ++n) images<1>(n);
  }
};

}  // namespace fastcnn::FASTCNN_ISA
