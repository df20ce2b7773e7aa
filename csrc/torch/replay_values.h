#pragma once
#include <optional>
#include <vector>

#include "replay_code.h"

namespace lcs::binding {

// What the steps of `replay` read and make: inputs, constants and results.
class ReplayValues {
 public:
  // Of so many steps.
  ReplayValues(std::vector<Tensor> inputs, const std::vector<Tensor>& constants, size_t steps);

  size_t size() const { return next_; }
  void add(Tensor made) { values_[next_++] = std::move(made); }
  void drop(int64_t value);
  const Tensor& tensor(Place place) const;

  // Values that are made together with others are set before they are next.
  void set(size_t value, Tensor made) { values_[value] = std::move(made); }
  bool has_next() const { return values_[next_].has_value(); }
  void pass_next() { ++next_; }

 private:
  const std::vector<Tensor>& constants_;
  std::vector<std::optional<Tensor>> values_;
  size_t next_ = 0;
};

}  // namespace lcs::binding
