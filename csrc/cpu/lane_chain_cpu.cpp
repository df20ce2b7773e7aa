#include "lcs/lane_chain.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <utility>

#include "lane_rows.h"
#include "lcs/line_norm.h"
#include "lcs/parallel_region.h"
#include "line_norm_rows.h"
#include "scratch.h"
#include "second_level.h"
#include "sparse_conv2d_rows.h"
#include "tasks.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kTasks = 8;               // of a step that threads share: enough to keep them even
constexpr int64_t kKeptBytes = 1 << 19;     // of a weight that stays in the second-level cache from band to band
constexpr int64_t kSharedBytes = 16 << 20;  // that a third-level cache holds beside much else

// The offsets of each convolution's values, which threads share; null: they are too large, read once, or yet to be
// looked up.
using Distances = std::vector<const int32_t*>;

// A step's tasks, in the order in which one thread has most of what they read from those before.
struct ChainStep {
  int64_t tasks;
  std::function<void(int64_t task, int64_t pass)> run;
};

// The steps on some memory.
class Chain {
 public:
  // `distances` may be looked up later.
  Chain(const LaneChainArgs& args, float* memory, const Distances& distances) : memory_(memory), distances_(distances) {
    for (const LaneChainArgs::Value& value : args.values) {
      images_.push_back(value.images);
      images_.back().data = memory + value.at;
    }
    const bool shared = args.memory != nullptr;
    for (const auto& step : args.steps)
      if (const auto* conv = std::get_if<LaneChainArgs::Conv>(&step))
        convolve(*conv, shared);
      else if (const auto* norm = std::get_if<LaneChainArgs::Norm>(&step))
        normalise(*norm);
      else if (const auto* statistics = std::get_if<LaneChainArgs::Statistics>(&step))
        measure(*statistics);
      else
        copy(step);
  }

  Chain(const Chain&) = delete;

  const float* memory() const { return memory_; }
  const std::vector<ChainStep>& steps() const { return steps_; }

  // Looks the distances of all convolutions up, a task each, but for those that are read once.
  ChainStep look_up(Distances& distances, int64_t passes) const {
    int64_t stored = 0;
    for (const SparseConv2dRows& conv : convolutions_) stored += conv.weight().stored();
    static thread_local Scratch<int32_t> scratch;
    int32_t* next = scratch.reserve(stored);
    std::vector<int32_t*> to;
    for (const SparseConv2dRows& conv : convolutions_) to.push_back(std::exchange(next, next + conv.weight().stored()));
    return {int64_t(to.size()), [this, to = std::move(to), &distances, passes](int64_t task, int64_t) {
              const SparseConv2dRows& conv = convolutions_[size_t(task)];
              int32_t* const these = to[size_t(task)];
              distances[size_t(task)] = passes * conv.tiles() > 1 && conv.sums().look_up(these) ? these : nullptr;
            }};
  }

 private:
  static int64_t rows_of(const LaneImages& images) { return images.groups * images.grid.height; }

  void copy(const LaneChainArgs::Step& step) {
    const auto* const load = std::get_if<LaneChainArgs::Load>(&step);
    const auto* const store = std::get_if<LaneChainArgs::Store>(&step);
    const Images& images = load ? load->from : store->to;
    const LaneImages& lanes = images_[load ? load->to : store->from];
    const LaneRows* const rows = &copies_.emplace_back(images, lanes);
    const int64_t height = lanes.grid.height;
    steps_.push_back({rows_of(lanes), [rows, images, height, loads = load != nullptr](int64_t task, int64_t pass) {
                        Images these = images;
                        these.data = static_cast<float*>(images.data) + pass * images.n * images.image_stride;
                        loads ? rows->load(these, task / height, task % height)
                              : rows->store(these, task / height, task % height);
                      }});
  }

  // From a copy, whose values lie in the order that line_norm sums them in.
  void measure(const LaneChainArgs::Statistics& of) {
    const LaneImages& x = images_[of.x];
    const int64_t rows = x.grid.height, height = rows * x.grid.down, width = x.grid.width * x.grid.across,
                  pixels = height * width, channels = x.channels, inside = channels / of.groups;
    const Images some{nullptr, 1, inside, height, width, inside * pixels, pixels, width, 1};
    const LaneRows* const lanes = &copies_.emplace_back(some, x);
    float* const vectors = memory_ + of.vectors;
    steps_.push_back({x.groups * of.groups, [=, of = &of](int64_t task, int64_t) {
                        static thread_local Scratch<float> scratch;
                        const int64_t group = task / of->groups, begin = task % of->groups * inside;
                        Images copy = some;
                        copy.data = scratch.reserve(inside * pixels);
                        for (int64_t row = 0; row < rows; ++row)
                          lanes->store_channels(copy, group, row, begin, begin + inside);
                        const GroupStatistics found =
                            line_norm_statistics(static_cast<const float*>(copy.data), inside * pixels, of->eps);
                        float* const mean = vectors + group * 3 * channels;
                        for (int64_t c = begin; c < begin + inside; ++c) {
                          mean[c] = found.mean, mean[channels + c] = found.rstd * of->weight[c];
                          mean[2 * channels + c] = of->bias[c];
                        }
                      }});
  }

  void normalise(const LaneChainArgs::Norm& norm) {
    const LaneImages& y = images_[norm.y];
    const LineNormRows* const rows = &norms_.emplace_back(norm, images_, memory_);
    const int64_t height = y.grid.height, channels = y.channels;
    steps_.push_back({rows_of(y), [rows, height, channels](int64_t task, int64_t) {
                        (*rows)(task / height, task % height, 0, channels);
                      }});
  }

  // Where bands are few, a task is a part of one: of a small weight a thread takes all channels of its bands, and reads
  // little that another has just written; of a large one all bands of its channels.
  void convolve(const LaneChainArgs::Conv& conv, bool shared) {
    const int32_t* const* const distance = &distances_[convolutions_.size()];
    const SparseConv2dRows* const run = &convolutions_.emplace_back(conv, images_, memory_);
    const LaneImages& y = images_[conv.y];
    const int64_t bands = run->bands(), all = y.groups * bands, channels = y.channels,
                  part = shared ? ceil_div(channels, ceil_div(kTasks, all)) : channels,
                  shares = ceil_div(channels, part);
    const bool by_band = conv.weight.stored() * int64_t{sizeof(float) + sizeof(int32_t)} <= kKeptBytes;
    steps_.push_back({all * shares, [=](int64_t task, int64_t) {
                        const int64_t share = by_band ? task % shares : task / all,
                                      band = by_band ? task / shares : task % all, first = share * part;
                        (*run)(band / bands, band % bands, first, std::min(channels, first + part), *distance);
                      }});
  }

  float* const memory_;
  const Distances& distances_;
  std::vector<LaneImages> images_;
  std::deque<LaneRows> copies_;
  std::deque<LineNormRows> norms_;
  std::deque<SparseConv2dRows> convolutions_;
  std::vector<ChainStep> steps_;
};

float* memory_of_thread(int64_t floats) {
  static thread_local Scratch<float> memory;
  return memory.reserve(floats);
}

}  // namespace

void lane_chain(const LaneChainArgs& args, const Parallel& parallel) {
  const auto convolves = [](const auto& step) { return std::holds_alternative<LaneChainArgs::Conv>(step); };
  Distances distances(size_t(std::count_if(args.steps.begin(), args.steps.end(), convolves)));
  const Chain chain(args, args.memory ? args.memory : memory_of_thread(args.floats), distances);
  const ChainStep first = chain.look_up(distances, args.passes);
  if (args.memory) {
    struct None {};
    const auto share = [](const Parallel& loops, const ChainStep& step, int64_t pass) {
      share_tasks<None>(loops, step.tasks, [&](int64_t task, None&) { step.run(task, pass); });
    };
    return parallel_region(parallel, [&](const Parallel& loops) {
      share(loops, first, 0);
      for (int64_t pass = 0; pass < args.passes; ++pass)
        for (const ChainStep& step : chain.steps()) share(loops, step, pass);
    });
  }
  for (int64_t task = 0; task < first.tasks; ++task) first.run(task, 0);
  Tasks tasks(args.passes);
  parallel(args.passes, 1, [&](int64_t begin, int64_t end) {
    float* const memory = memory_of_thread(args.floats);
    std::optional<Chain> own;
    const Chain& these = memory == chain.memory() ? chain : own.emplace(args, memory, distances);
    Tasks::Taker taker(tasks, begin, end);
    for (Tasks::Some some = taker.one(); some.begin < some.end; some = taker.one())
      for (const ChainStep& step : these.steps())
        for (int64_t task = 0; task < step.tasks; ++task) step.run(task, some.begin);
  });
}

int64_t lane_chain_shared_floats() { return kSharedBytes / int64_t{sizeof(float)}; }

int64_t lane_chain_floats() { return second_level() * 5 / 2 / int64_t{sizeof(float)}; }

}  // namespace lcs
