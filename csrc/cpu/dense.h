// A dense layer of a few images: y[n, o] = sum over i of w[o, i] * x[n, i], then bias and ReLU.
// Each value is summed in the same order whatever else is computed beside it.
#pragma once

#include <limits>

#include "geometry.h"
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

constexpr int kImages = lanes<float> == 16 ? 4 : 2;  // of a tile: its sums are in registers
constexpr int64_t kVectorsAtOnce = 64;               // in one sum: longer ones lose digits
constexpr int64_t kOutputsAtOnce = 8;       // whose weights all images use while they are in cache
constexpr int64_t kTaskProducts = 1 << 17;  // at least: fewer are not worth another thread

// x: (images, inputs); weight: (outputs, inputs); bias: (outputs,) or null; y: (images, outputs).
class DenseForward {
 public:
  DenseForward(const DenseParams& p, const float* from, float* to, int64_t count)
      : x(from),
        weight(static_cast<const float*>(p.weight)),
        bias(static_cast<const float*>(p.bias)),
        y(to),
        images(count),
        inputs(p.inputs),
        outputs(p.outputs),
        task_outputs(
            round_up(std::max<int64_t>(1, kTaskProducts / std::max<int64_t>(1, images * inputs)),
                     kOutputsAtOnce)),
        least(p.relu ? 0 : -std::numeric_limits<float>::infinity()) {}

  int64_t tasks() const { return (outputs + task_outputs - 1) / task_outputs; }

  void run(int64_t task) const {
    const int64_t end = std::min(outputs, (task + 1) * task_outputs);
    for (int64_t o = task * task_outputs; o < end; o += kOutputsAtOnce)
      all_images<kImages>(0, {o, std::min(end, o + kOutputsAtOnce)});
  }

 private:
  // From image n on: groups of IMAGES, then of half as many, and so on.
  template <int IMAGES>
  void all_images(int64_t n, Rows at_once) const {
    for (; n + IMAGES <= images; n += IMAGES) tiles<IMAGES, IMAGES == 1 ? 8 : 4>(n, at_once);
    if constexpr (IMAGES > 1) all_images<IMAGES / 2>(n, at_once);
  }

  template <int IMAGES, int ROWS>
  void tiles(int64_t n, Rows at_once) const {
    int64_t o = at_once.begin;
    for (; o + ROWS <= at_once.end; o += ROWS) tile<IMAGES, ROWS>(n, o);
    for (; o < at_once.end; ++o) tile<IMAGES, 1>(n, o);
  }

  // ROWS outputs, from o on, of IMAGES images, from n on.
  template <int IMAGES, int ROWS>
  void tile(int64_t n, int64_t o) const {
    float values[IMAGES * ROWS] = {};
    for (int64_t from = 0; from < inputs; from += kVectorsAtOnce * lanes<float>)
      add_products<IMAGES, ROWS>(n, o, from, values);
    float shift[ROWS] = {};
    if (bias) std::copy_n(bias + o, ROWS, shift);
    for (int m = 0; m < IMAGES; ++m)
      for (int r = 0; r < ROWS; ++r) {
        const float v = values[m * ROWS + r] + shift[r];
        y[(n + m) * outputs + o + r] = v < least ? least : v;
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

  const float *x, *weight, *bias;
  float* y;
  int64_t images, inputs, outputs, task_outputs;
  float least;  // value of y
};

}  // namespace fastcnn::FASTCNN_ISA
