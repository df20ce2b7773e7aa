#!/usr/bin/env bash
# The C++ tests of the kernels with AVX-512 (and AMX) emulated by SIMDe (https://github.com/simd-everywhere/simde), for machines
# without it: tests/cpp/emulated/run.sh FOLDER, where FOLDER holds simde/x86/avx512.h.
set -euo pipefail
if [ ! -f "${1:-}/simde/x86/avx512.h" ]; then
  echo "emulate: no ${1:-FOLDER}/simde/x86/avx512.h; clone SIMDe and name its folder: make emulate SIMDE=FOLDER" >&2
  exit 2
fi
simde=$(cd "$1" && pwd)
cd "$(dirname "$0")/../../.."
build=build/emulated
rm -rf "$build" && mkdir -p "$build"
compile=("${CXX:-c++}" -std=c++20 -O2 -ffp-contract=off -w -Wno-psabi "-DLCS_TARGET_BEGIN(t)=" -DLCS_TARGET_END=
         -DLCS_EMULATED_TILES -Icsrc/include -Icsrc/cpu -Itests/cpp/emulated -Itests/cpp -I"$simde")
for source in csrc/cpu/*.cpp tests/cpp/emulated/isa.cpp; do
  case "$source" in csrc/cpu/isa.cpp | csrc/cpu/*_bf16.cpp) ;; *) echo "$source" ;; esac
done | xargs -P "$(nproc)" -I{} sh -c '"$@" -c {} -o '"$build"'/$(basename {} .cpp).o' sh "${compile[@]}"
for test in interpolate_prune interpolate_prune_backward interpolate_quantize line_norm packed_conv2d packed_linear \
            sparse_conv2d sparse_linear sparse_pack width_conv2d width_conv2d_norm width_gradient; do
  "${compile[@]}" "tests/cpp/${test}_test.cpp" "$build"/*.o -pthread -o "$build/$test"
  "$build/$test"
  echo "passed, AVX-512 emulated: $test"
done
