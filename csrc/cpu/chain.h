// Convolutions and what follows as one loop: some images at a time go through all layers, from one
// buffer to the other, and stay in cache.
#pragma once

#include <memory>

#include "dense.h"
#include "direct.h"

namespace fastcnn::FASTCNN_ISA {

constexpr int64_t kImagesAtOnce = 8;  // at most: what they are is then in the L2 cache

// The weights of a network's convolutions, packed.
class PackedWeights {
 public:
  explicit PackedWeights(const NetworkParams& net) {
    int64_t size = 0;
    for (const ConvParams& p : net.convolutions) size += Direct(p).packed_size();
    memory_.reset(new float[size]);
    float* at = memory_.get();
    for (const ConvParams& p : net.convolutions) {
      const Direct direct(p);
      direct.pack<F32>(at);
      starts_.push_back(at);
      at += direct.packed_size();
    }
  }
  const float* operator[](size_t layer) const { return starts_[layer]; }

 private:
  std::unique_ptr<float[]> memory_;
  std::vector<const float*> starts_;
};

class ChainForward {
 public:
  ChainForward(const NetworkParams& net, const PackedWeights& packed, Scratch& scratch)
      : net_(net),
        layers_(net.convolutions),
        images_(clamp((net.N + net.threads - 1) / net.threads, 1, kImagesAtOnce)) {
    int64_t most = 0;
    convolutions_.reserve(layers_.size());
    for (size_t i = 0; i < layers_.size(); ++i) {
      ConvParams& p = layers_[i];
      p.after.N = 1, p.after.threads = 1;
      const int64_t values = p.after.C * p.after.OH * p.after.OW;
      p.x = {nullptr, p.C * p.H * p.W, p.H * p.W, p.W, 1};
      p.after.y = {nullptr, values, p.after.OH * p.after.OW, p.after.OW, 1};
      most = std::max(most, values);
      convolutions_.emplace_back(p, packed[i], scratch);
    }
    for (const DenseParams& p : net.denses) most = std::max(most, p.outputs);
    for (float*& buffer : buffers_) buffer = scratch.span<float>(images_ * most);
    inputs_ = layers_[0].x.n;
    outputs_ = net.denses.empty() ? layers_.back().after.y.n : net.denses.back().outputs;
  }

  int64_t tasks() const { return (net_.N + images_ - 1) / images_; }

  void run(int64_t task) {
    const int64_t first = task * images_;
    const int64_t images = std::min(images_, net_.N - first);
    const float* from = static_cast<const float*>(net_.x) + first * inputs_;
    float* const end = static_cast<float*>(net_.y) + first * outputs_;
    size_t left = layers_.size() + net_.denses.size();
    for (size_t i = 0; i < layers_.size(); ++i) {
      float* to = --left ? buffers_[left % 2] : end;
      for (int64_t n = 0; n < images; ++n) {
        layers_[i].x.data = const_cast<float*>(from + n * layers_[i].x.n);
        layers_[i].after.y.data = to + n * layers_[i].after.y.n;
        for (int64_t band = 0; band < convolutions_[i].tasks(); ++band) convolutions_[i].run(band);
      }
      from = to;
    }
    for (const DenseParams& p : net_.denses) {
      float* to = --left ? buffers_[left % 2] : end;
      const DenseForward dense(p, from, to, images);
      for (int64_t part = 0; part < dense.tasks(); ++part) dense.run(part);
      from = to;
    }
  }

 private:
  const NetworkParams& net_;
  std::vector<ConvParams> layers_;
  int64_t images_;  // of a task
  std::vector<DirectForward<F32>> convolutions_;
  float* buffers_[2];
  int64_t inputs_, outputs_;
};

}  // namespace fastcnn::FASTCNN_ISA
