#include "replay_chain_steps.h"

#include <map>
#include <utility>

#include "images_binding.h"
#include "lcs/sparse_conv2d_lanes.h"
#include "line_norm_binding.h"

namespace lcs::binding {
namespace {

class ChainReader {
 public:
  ChainReader(const Steps& steps, const ReplayValues& values, const ReplayNeeds& needs, bool may_measure)
      : steps_(steps), values_(values), needs_(needs), may_measure_(may_measure) {}

  ChainSteps from(size_t first) {
    while (first + found_.all.size() < steps_.all.size() && takes(first + found_.all.size())) continue;
    return std::move(found_);
  }

 private:
  bool takes(size_t step) {
    const AnyCall& call = steps_.all[step].call;
    const size_t value = needs_.value_of(step);
    if (const auto* conv = std::get_if<SparseConv2dStep>(&call)) return takes(*conv, kSparseConv2d, value);
    if (const auto* conv = std::get_if<SparseConv2dNormStep>(&call)) return takes(*conv, kSparseConv2dNorm, value);
    if (const auto* norm = std::get_if<LineNormStep>(&call)) return takes(NormPlaces(*norm), value);
    return false;
  }

  template <class Step>
  bool takes(const Step& step, const char* op, size_t value) {
    const ConvPlaces places(step);
    if (!places.could_take_lanes) return false;
    const auto known = kinds_.find(places.x.index());
    if (known == kinds_.end() && !found_.all.empty()) return false;
    const ImagesKind kind = known == kinds_.end() ? images_kind(op, values_.tensor(places.x)) : as_read(known->second);
    if (kind.type != ScalarType::Float || kind.size.size() != 4 || kind.size[0] == 0) return false;
    SparseConv2dCall call(op, kind, given_to(step, values_));
    if (!sparse_conv2d_takes_lanes(call.args) || (places.residual && !adds(*places.residual, call.y))) return false;
    std::optional<ReplayNorm> norm;
    if (places.norm) {
      norm.emplace(op, *places.norm, values_, call.y);
      if (!takes(*norm)) return false;
    }
    kinds_.try_emplace(places.x.index(), kind);
    kinds_.insert_or_assign(value, call.y);
    found_.all.emplace_back(ChainSteps::Conv{places, std::move(call), std::move(norm)});
    return true;
  }

  bool takes(const NormPlaces& places, size_t value) {
    const auto x = kinds_.find(places.x.index());
    if (!places.could_take_lanes() || x == kinds_.end()) return false;
    ReplayNorm norm(kLineNorm, places, values_, x->second);
    if (!takes(norm)) return false;
    kinds_.insert_or_assign(value, norm.y);
    found_.all.emplace_back(std::move(norm));
    return true;
  }

  bool takes(const ReplayNorm& norm) {
    if (norm.places.residual && !adds(*norm.places.residual, norm.y)) return false;
    if (norm.mean) return true;
    if (!may_measure_ || as_read(norm.y).last) return false;  // of channels last they are summed in another order
    return found_.measure = true;
  }

  // Of a single channel, images with channels last are contiguous, too.
  static ImagesKind as_read(ImagesKind kind) {
    kind.last &= kind.size[1] != 1;
    return kind;
  }

  bool adds(Place residual, const ImagesKind& y) {
    if (residual.is_constant()) return false;
    const auto known = kinds_.find(residual.index());
    if (known != kinds_.end()) return known->second.size == y.size && as_read(known->second).last == as_read(y).last;
    return lies_as(values_.tensor(residual), y.size, y.type, y.last);
  }

  const Steps& steps_;
  const ReplayValues& values_;
  const ReplayNeeds& needs_;
  const bool may_measure_;
  std::map<size_t, ImagesKind> kinds_;  // of values
  ChainSteps found_;
};

}  // namespace

ChainSteps chain_steps(size_t first, const Steps& steps, const ReplayValues& values, const ReplayNeeds& needs,
                       bool may_measure) {
  return ChainReader(steps, values, needs, may_measure).from(first);
}

}  // namespace lcs::binding
