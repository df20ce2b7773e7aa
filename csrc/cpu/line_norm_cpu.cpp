#include "lcs/line_norm.h"

#include <algorithm>
#include <cmath>

#include "lcs/ceil_div.h"
#include "line_norm_kernels.h"
#include "scratch.h"

namespace lcs {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements below which another thread does not pay
constexpr int64_t kGroup = 1 << 8;   // elements that take as long as what there is to do for a group besides
constexpr int64_t kPiece = 1 << 14;  // elements of a sample, channels last, that are summed together
constexpr int64_t kSamples = 8;      // enough for threads to share them evenly
constexpr int64_t kTogether = 16;    // small groups whose steps are done one after the other, so that none waits
constexpr int64_t kSmall = 1 << 8;   // elements of one
constexpr int64_t kLot = 1 << 11;    // elements of several: all that is read and written of them fits the first cache

// Pieces of a sample of so many pixels: an even number, for two threads to share evenly.
int64_t pieces_of(int64_t pixels, int64_t most) {
  const int64_t pieces = ceil_div(pixels, most);
  return pieces == 1 ? 1 : (pieces + 1) / 2 * 2;
}

int64_t tasks_of(int64_t elements) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(elements, 1)); }

// Of n elements.
GroupStatistics statistics_of(const NormMoments& moments, int64_t n, double eps) {
  return {float(moments.mean), float(1 / std::sqrt(moments.squares / double(n) + eps))};
}

// What forward and backward share: the affine part at alpha, and the lines that it makes of means and deviations.
class Norm {
 public:
  explicit Norm(const LineNormArgs& args)
      : args_(args),
        run_(line_norm_kernels()),
        padded_(args.channels + kNormRow),
        in_group_(args.mean ? 1 : args.channels / args.groups),
        size_(in_group_ * args.pixels),
        rows_((args.pixels - 1) / pieces_of(args.pixels, std::max<int64_t>(kPiece / args.channels, 1)) + 1),
        pieces_((args.pixels - 1) / rows_ + 1) {
    static thread_local Scratch<float> vectors;
    weight_ = vectors.reserve(3 * padded_), bias_ = weight_ + padded_, given_ = bias_ + padded_;
    fill(args.weight, 1, weight_);
    fill(args.bias, 0, bias_);
    if (args.mean)
      for (int64_t c = 0; c < args.channels; ++c) given_[c] = float(1 / std::sqrt(double(args.var[c]) + args.eps));
  }

 protected:
  const void* at(const void* p, int64_t element) const { return advance(p, element, args_.dtype); }
  void* at(void* p, int64_t element) const { return advance(p, element, args_.dtype); }

  float rstd(int64_t group, int64_t c) const { return args_.mean ? given_[c] : args_.rstds[group]; }
  // Groups from `begin` on, of one sample.
  NormGroups affine(int64_t begin) const {
    const int64_t c = begin % groups() * in_group_;
    return {in_group_, args_.mean ? args_.mean + c : args_.means + begin, args_.mean ? given_ + c : args_.rstds + begin,
            weight_ + c, bias_ + c};
  }

  // Of all channels of sample n, written to `to`, which has room for two padded vectors.
  NormLines lines(int64_t n, float* to) const {
    for (int64_t g = 0; g < groups(); ++g) {
      const int64_t group = n * groups() + g, first = g * in_group_;
      const float mean = args_.mean ? args_.mean[g] : args_.means[group], rstd = this->rstd(group, first);
      for (int64_t c = first; c < first + in_group_; ++c) to[c] = mean, to[padded_ + c] = rstd * weight_[c];
    }
    return {to, to + padded_, bias_};
  }

  // Calls body(first sample, the one past the last, parallel): for each alone where they are many, so that what is read
  // twice is in the caches.
  template <class Body>
  void for_samples(const Parallel& parallel, Body body) const {
    if (args_.n < kSamples) return body(0, args_.n, parallel);
    parallel(args_.n, tasks_of(args_.pixels * args_.channels + kGroup), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) body(n, n + 1, serial);
    });
  }

  // Calls body(first, the one past the last) for groups of all samples, or channels: one, or several small ones of a
  // sample.
  template <class Body>
  void for_groups(const Parallel& parallel, Body body) const {
    const int64_t together = size_ <= kSmall ? std::min(kTogether, kLot / size_) : 1;
    parallel(args_.n * groups(), tasks_of(size_ + kGroup), [&](int64_t begin, int64_t end) {
      for (int64_t next; begin < end; begin = next) {
        next = begin + 1;
        if (together > 1) next = std::min({end, begin + together, (begin / groups() + 1) * groups()});
        body(begin, next);
      }
    });
  }

  int64_t groups() const { return args_.mean ? args_.channels : args_.groups; }
  int64_t rows_of(int64_t piece) const { return std::min(rows_, args_.pixels - piece * rows_); }
  // The first element of a piece of a sample, channels last.
  int64_t first(int64_t n, int64_t piece) const { return (n * args_.pixels + piece * rows_) * args_.channels; }

  const LineNormArgs& args_;
  const LineNormKernels run_;
  const int64_t padded_, in_group_, size_, rows_, pieces_;
  float *weight_, *bias_, *given_;

 private:
  void fill(const LineVector& vector, float none, float* to) const {
    if (vector.end0)
      run_.blend(vector, args_.alpha, args_.channels, to);
    else
      std::fill_n(to, args_.channels, none);
    std::fill_n(to + args_.channels, kNormRow, 0.0f);
  }
};

class Lines : Norm {
 public:
  using Norm::Norm;

  void write(float* scale, float* shift) const {
    for (int64_t c = 0; c < args_.channels; ++c) scale[c] = given_[c] * weight_[c];
    std::copy_n(bias_, args_.channels, shift);
  }
  void write_affine(float* weight, float* bias) const {
    std::copy_n(weight_, args_.channels, weight);
    std::copy_n(bias_, args_.channels, bias);
  }
};

class Forward : Norm {
 public:
  Forward(const LineNormArgs& args, const Parallel& parallel) : Norm(args), parallel_(parallel) {}

  void run() const {
    if (args_.last) {
      for_samples(parallel_, [this](int64_t begin, int64_t end, const Parallel& parallel) {
        if (!args_.mean) column_statistics(begin, end, parallel);
        normalise_pieces(begin, end, parallel);
      });
    } else {
      for_groups(parallel_, [this](int64_t begin, int64_t end) { normalise_groups(begin, end); });
    }
  }

 private:
  void keep(int64_t group, const NormMoments& moments) const {
    const GroupStatistics found = statistics_of(moments, size_, args_.eps);
    args_.means[group] = found.mean, args_.rstds[group] = found.rstd;
  }

  // Read, cached, and read again.
  void normalise_groups(int64_t begin, int64_t end) const {
    if (!args_.mean) {
      NormMoments moments[kTogether];
      run_.moments(at(args_.x, begin * size_), size_, end - begin, args_.dtype, moments);
      for (int64_t i = begin; i < end; ++i) keep(i, moments[i - begin]);
    }
    run_.planes({at(args_.x, begin * size_), at(args_.residual, begin * size_), at(args_.y, begin * size_),
                 (end - begin) * in_group_, args_.pixels, args_.relu, args_.dtype},
                affine(begin));
  }

  // Of samples [from, to).
  void column_statistics(int64_t from, int64_t to, const Parallel& parallel) const {
    static thread_local Scratch<float> scratch;
    float* const columns = scratch.reserve((to - from) * pieces_ * 3 * padded_);
    parallel((to - from) * pieces_, tasks_of(rows_ * args_.channels), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* const near = columns + i * 3 * padded_;
        const int64_t n = from + i / pieces_, piece = i % pieces_;
        run_.column_moments(at(args_.x, first(n, piece)), rows_of(piece), args_.channels, args_.dtype,
                            {near, near + padded_, near + 2 * padded_});
      }
    });
    parallel((to - from) * args_.groups, tasks_of(pieces_ * in_group_), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        combine(columns + i / args_.groups * pieces_ * 3 * padded_, from + i / args_.groups, i % args_.groups);
    });
  }

  // A group's moments from those of its channels in each piece.
  void combine(const float* columns, int64_t n, int64_t group) const {
    double sum = 0, squares = 0;
    for_columns(columns, group,
                [&](double rows, double near, double deviation, double) { sum += rows * near + deviation; });
    const double mean = sum / double(size_);
    for_columns(columns, group, [&](double rows, double near, double deviation, double square) {
      const double off = near - mean;  // about the mean: the sum of (d + off)^2
      squares += square + (2 * deviation + rows * off) * off;
    });
    keep(n * args_.groups + group, {mean, squares});
  }

  template <class Body>
  void for_columns(const float* columns, int64_t group, Body body) const {
    for (int64_t piece = 0; piece < pieces_; ++piece, columns += 3 * padded_)
      for (int64_t c = group * in_group_; c < (group + 1) * in_group_; ++c)
        body(double(rows_of(piece)), columns[c], columns[padded_ + c], columns[2 * padded_ + c]);
  }

  void normalise_pieces(int64_t from, int64_t to, const Parallel& parallel) const {
    parallel((to - from) * pieces_, tasks_of(rows_ * args_.channels), [&](int64_t begin, int64_t end) {
      static thread_local Scratch<float> scratch;
      float* const table = scratch.reserve(2 * padded_);
      int64_t made = -1;
      NormLines lines{};
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = from + i / pieces_, piece = i % pieces_, x = first(n, piece);
        if (n != made) lines = this->lines(made = n, table);
        run_.columns({at(args_.x, x), at(args_.residual, x), at(args_.y, x), rows_of(piece), args_.channels, args_.relu,
                      args_.dtype},
                     lines);
      }
    });
  }

  const Parallel& parallel_;
};

class Backward : Norm {
 public:
  Backward(const LineNormBackwardArgs& args, const Parallel& parallel)
      : Norm(args.forward), backward_(args), parallel_(parallel) {
    static thread_local Scratch<float> scratch;
    grads_ = scratch.reserve(args_.n * args_.channels * 2), products_ = grads_ + args_.n * args_.channels;
  }

  double run() {
    if (args_.last) {
      for_samples(parallel_, [this](int64_t begin, int64_t end, const Parallel& parallel) {
        sum_pieces(begin, end, parallel);
        grad_pieces(begin, end, parallel);
      });
    } else {
      for_groups(parallel_, [this](int64_t begin, int64_t end) { grad_groups(begin, end); });
    }
    return vectors();
  }

 private:
  NormGradRows job(int64_t begin, int64_t rows, int64_t columns) const {
    return {at(args_.x, begin), at(backward_.grad, begin), at(backward_.grad_x, begin), rows, columns, args_.relu,
            args_.dtype};
  }

  struct Slope {
    float slope, offset;
  };

  // What reaches x through a group's mean and deviation, with the weights of its channels.
  Slope slope(int64_t group, const float* weight) const {
    if (args_.mean) return {0, 0};
    const int64_t first = group * in_group_;
    double grad = 0, product = 0;
    for (int64_t c = 0; c < in_group_; ++c) {
      grad += double(weight[c]) * grads_[first + c];
      product += double(weight[c]) * products_[first + c];
    }
    const double rstd = args_.rstds[group], share = rstd / double(size_);
    return {float(-product * share * rstd), float(-grad * share)};
  }

  void grad_groups(int64_t begin, int64_t end) {
    float slopes[kTogether], offsets[kTogether];
    const NormGroups groups = affine(begin);
    const int64_t first = begin * in_group_;
    const NormGradRows job = this->job(begin * size_, (end - begin) * in_group_, args_.pixels);
    run_.sums(job, groups, grads_ + first, products_ + first);
    for (int64_t i = 0, c = 0; i < end - begin; ++i) {
      const float* const weight = groups.weight + c;
      for (const int64_t next = c + in_group_; c < next; ++c) products_[first + c] *= groups.rstd[i];
      const Slope to = slope(begin + i, weight);
      slopes[i] = to.slope, offsets[i] = to.offset;
    }
    run_.grad_planes(job, groups, slopes, offsets);
  }

  void sum_pieces(int64_t from, int64_t to, const Parallel& parallel) {
    static thread_local Scratch<float> scratch;
    float* const columns = scratch.reserve((to - from) * pieces_ * 2 * padded_);
    for_pieces(from, to, parallel, [&](int64_t i, const NormGradRows& job, const NormLines& lines, float*) {
      run_.column_sums(job, lines, columns + i * 2 * padded_, columns + i * 2 * padded_ + padded_);
    });
    parallel(to - from, tasks_of(pieces_ * args_.channels), [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at)
        for (int64_t c = 0; c < args_.channels; ++c) {
          const int64_t n = from + at;
          double grad = 0, product = 0;
          for (int64_t i = at * pieces_; i < (at + 1) * pieces_; ++i) {
            grad += columns[i * 2 * padded_ + c];
            product += columns[(i * 2 + 1) * padded_ + c];
          }
          grads_[n * args_.channels + c] = float(grad);
          products_[n * args_.channels + c] = float(product * rstd(n * groups() + c / in_group_, c));
        }
    });
  }

  void grad_pieces(int64_t from, int64_t to, const Parallel& parallel) {
    for_pieces(from, to, parallel, [&](int64_t i, const NormGradRows& job, const NormLines& lines, float* slopes) {
      for (int64_t g = 0; g < groups(); ++g) {
        const Slope to = slope((from + i / pieces_) * groups() + g, weight_ + g * in_group_);
        std::fill_n(slopes + g * in_group_, in_group_, to.slope);
        std::fill_n(slopes + padded_ + g * in_group_, in_group_, to.offset);
      }
      run_.grad_columns(job, lines, slopes, slopes + padded_);
    });
  }

  // Calls body(piece, job, lines, room for two padded vectors) for the pieces of samples [from, to).
  template <class Body>
  void for_pieces(int64_t from, int64_t to, const Parallel& parallel, Body body) {
    parallel((to - from) * pieces_, tasks_of(rows_ * args_.channels), [&](int64_t begin, int64_t end) {
      static thread_local Scratch<float> scratch;
      float* const room = scratch.reserve(4 * padded_);
      std::fill_n(room, 4 * padded_, 0.0f);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = from + i / pieces_, piece = i % pieces_;
        body(i, job(first(n, piece), rows_of(piece), args_.channels), lines(n, room), room + 2 * padded_);
      }
    });
  }

  // The affine part's gradients, summed over the samples; returns alpha's.
  double vectors() {
    static thread_local Scratch<double> scratch;
    double* const totals = scratch.reserve(2 * args_.channels);
    constexpr int64_t kChannels = 64;  // summed together
    parallel_(ceil_div(args_.channels, kChannels), tasks_of(args_.n * kChannels), [&](int64_t begin, int64_t end) {
      const int64_t from = begin * kChannels, to = std::min(end * kChannels, args_.channels);
      for (const auto& [sums, total] : {std::pair(products_, totals), {grads_, totals + args_.channels}}) {
        std::fill(total + from, total + to, 0.0);
        for (int64_t n = 0; n < args_.n; ++n)
          for (int64_t c = from; c < to; ++c) total[c] += sums[n * args_.channels + c];
      }
    });
    return vector(args_.weight, backward_.weight, totals) + vector(args_.bias, backward_.bias, totals + args_.channels);
  }

  double vector(const LineVector& ends, const LineVectorGrad& to, const double* totals) {
    const int64_t used = args_.channels;
    for (int64_t c = 0; c < used; ++c) {
      const float total = float(totals[c]);
      if (to.end1) to.end1[c] = args_.alpha * total;
      if (to.end0) to.end0[c] = to.end1 ? (1 - args_.alpha) * total : total;
    }
    for (float* const end : {to.end0, to.end1})
      if (end) std::fill(end + used, end + to.full, 0.0f);
    if (!ends.end1) return 0;
    run_.blend({ends.end0, nullptr, ends.dtype}, 0, used, weight_);  // which nothing needs any more
    run_.blend({ends.end1, nullptr, ends.dtype}, 0, used, bias_);
    double grad = 0;
    for (int64_t c = 0; c < used; ++c) grad += totals[c] * (double(bias_[c]) - weight_[c]);
    return grad;
  }

  const LineNormBackwardArgs& backward_;
  const Parallel& parallel_;
  float *grads_, *products_;  // n x channels
};

}  // namespace

void line_norm_lines(const LineNormArgs& args, float* scale, float* shift) { Lines(args).write(scale, shift); }

void line_norm_affine(const LineNormArgs& args, float* weight, float* bias) { Lines(args).write_affine(weight, bias); }

GroupStatistics line_norm_statistics(const float* x, int64_t n, double eps) {
  NormMoments moments;
  line_norm_kernels().moments(x, n, 1, DType::float32, &moments);
  return statistics_of(moments, n, eps);
}

LineNormArgs samples_of(const LineNormArgs& args, int64_t begin, int64_t end) {
  LineNormArgs samples = args;
  const int64_t from = begin * args.channels * args.pixels;
  samples.n = end - begin;
  samples.x = advance(args.x, from, args.dtype);
  samples.residual = advance(args.residual, from, args.dtype);
  samples.y = advance(args.y, from, args.dtype);
  if (args.means) samples.means += begin * args.groups, samples.rstds += begin * args.groups;
  return samples;
}

void line_norm(const LineNormArgs& args, const Parallel& parallel) {
  if (args.n * args.channels * args.pixels != 0) Forward(args, parallel).run();
}

double line_norm_backward(const LineNormBackwardArgs& args, const Parallel& parallel) {
  if (args.forward.n * args.forward.channels * args.forward.pixels != 0) return Backward(args, parallel).run();
  for (const LineVectorGrad& grad : {args.weight, args.bias})
    for (float* const end : {grad.end0, grad.end1})
      if (end) std::fill_n(end, grad.full, 0.0f);
  return 0;
}

}  // namespace lcs
