#pragma once
#include "lcs/packed_conv2d.h"

namespace lcs {

// packed_conv2d of a depthwise weight, of at least one output.
void packed_depthwise(const PackedConv2dArgs& args, const Parallel& parallel);

// Likewise, by spans, where `packed_depthwise_fits` says that it can.
void packed_depthwise_by_spans(const PackedConv2dArgs& args, const Parallel& parallel);
bool packed_depthwise_fits(const PackedConv2dArgs& args);

// Of a step's 32 rows: the codes of a column.
void packed_column_codes(const uint8_t* planes, int64_t plane_bytes, int bits, int column, uint8_t* codes);

}  // namespace lcs
