#pragma once
#include <optional>
#include <tuple>
#include <vector>

#include "binding.h"

// The ops that `replay` runs, as their schemas have them.
namespace lcs::binding {

Tensor sparse_conv2d_cpu(Tensor x, Tensor mask_bits, Tensor values, std::vector<int64_t> weight_shape,
                         std::optional<Tensor> bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                         std::vector<int64_t> dilation, int64_t groups, bool relu, int64_t block,
                         std::vector<Tensor> prepack, std::optional<Tensor> scale, std::optional<double> cap,
                         std::optional<Tensor> residual);

Tensor sparse_conv2d_norm_cpu(Tensor x, Tensor mask_bits, Tensor values, std::vector<int64_t> weight_shape,
                              std::optional<Tensor> bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                              std::vector<int64_t> dilation, int64_t groups, int64_t block, std::vector<Tensor> prepack,
                              std::optional<Tensor> weight0, std::optional<Tensor> weight1, std::optional<Tensor> bias0,
                              std::optional<Tensor> bias1, std::optional<Tensor> alpha, std::optional<Tensor> residual,
                              int64_t norm_groups, double eps, bool relu);

Tensor width_conv2d_cpu(Tensor x, Tensor weight, int64_t out_channels, std::optional<Tensor> scale,
                        std::optional<Tensor> bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                        std::vector<int64_t> dilation, int64_t groups, bool relu, std::optional<Tensor> packed,
                        std::optional<bool> winograd, std::optional<double> cap, std::optional<Tensor> residual);

Tensor width_conv2d_norm_cpu(Tensor x, Tensor weight, int64_t out_channels, std::optional<Tensor> bias,
                             std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                             int64_t groups, std::optional<Tensor> packed, std::optional<Tensor> weight0,
                             std::optional<Tensor> weight1, std::optional<Tensor> bias0, std::optional<Tensor> bias1,
                             std::optional<Tensor> alpha, std::optional<Tensor> residual, int64_t norm_groups,
                             double eps, bool relu, std::vector<int64_t> pool, std::optional<Tensor> mean,
                             std::optional<Tensor> var);

std::tuple<Tensor, Tensor> line_norm_cpu(Tensor x, std::optional<Tensor> weight0, std::optional<Tensor> weight1,
                                         std::optional<Tensor> bias0, std::optional<Tensor> bias1,
                                         std::optional<Tensor> alpha, std::optional<Tensor> mean,
                                         std::optional<Tensor> var, std::optional<Tensor> residual, int64_t groups,
                                         double eps, bool relu);

// Torch's own, which networks end with.
Tensor torch_mean(Tensor x, std::optional<std::vector<int64_t>> dim, bool keepdim, std::optional<ScalarType> dtype);
Tensor torch_as_strided_(Tensor x, std::vector<int64_t> size, std::vector<int64_t> stride,
                         std::optional<int64_t> offset);
Tensor torch_view(Tensor x, std::vector<int64_t> size);

}  // namespace lcs::binding
