#include <immintrin.h>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include <random>
#include <utility>
#include <algorithm>
// one tile of R x C vectors (16 lanes), M rows, K = ch*9 per block.
struct Blk { std::vector<int> count; std::vector<int> dist; std::vector<float> val; };
template <class F, int... i> inline __attribute__((always_inline)) void each(F f, std::integer_sequence<int, i...>) { (f(i), ...); }
template <int R, int C, int PF>
__attribute__((noinline)) void tile(const float* x, long pitch, const int* count, const int* dist, const float* val, float* acc, long stride, int rows, bool first) {
  constexpr auto kE = std::make_integer_sequence<int, R * C>();
  const __m512 floor = _mm512_set1_ps(-1e30f), ceil = _mm512_set1_ps(1e30f);
  for (int r = 0; r < rows; ++r, acc += stride) {
    __m512 s[R * C];
    if (first) each([&](int v) { s[v] = _mm512_setzero_ps(); }, kE);
    else each([&](int v) { s[v] = _mm512_loadu_ps(acc + v * 16); }, kE);
    if (PF) { each([&](int v) { _mm_prefetch((const char*)(acc + PF * stride + v * 16), _MM_HINT_T0); }, kE); }
    const int n = count[r];
    for (int i = 0; i < n; ++i) {
      const float* p = x + dist[i];
      const __m512 w = _mm512_set1_ps(val[i]);
      each([&](int v) { s[v] = _mm512_fmadd_ps(w, _mm512_loadu_ps(p + (v / C) * pitch + (v % C) * 16), s[v]); }, kE);
    }
    dist += n, val += n;
    each([&](int v) { _mm512_storeu_ps(acc + v * 16, _mm512_min_ps(_mm512_max_ps(s[v], floor), ceil)); }, kE);
  }
}
double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
std::mt19937 g(1);
// panel: channels x (H+2) x (W+2) x 16 ; block tile over the panel
template <int R, int C, int PF>
void bench(const char* name, int M, int Cin, int ch, int H, int W, double d) {
  const long pitch = (W + 2) * 16; long channel = (H + 2) * pitch; channel = (channel / 16 | 1) * 16;
  float* x = (float*)aligned_alloc(64, (Cin * channel + 1024) * 4);
  for (long i = 0; i < Cin * channel + 1024; ++i) x[i] = 1;
  std::vector<Blk> b;
  long nnz = 0;
  for (int c = 0; c < Cin; c += ch) {
    Blk k; int n = std::min(ch, Cin - c);
    for (int m = 0; m < M; ++m) { int cnt = 0;
      for (int i = 0; i < n; ++i) for (int t = 0; t < 9; ++t) if ((g() % 100000) < d * 100000) { k.dist.push_back(i * channel + t / 3 * pitch + t % 3 * 16); k.val.push_back(1); ++cnt; }
      k.count.push_back(cnt); nnz += cnt; }
    b.push_back(k);
  }
  long stride = (R * C | 1) * 16; // odd lines
  float* acc = (float*)aligned_alloc(64, (M + 8) * stride * 4 + 64*4);
  double best = 1e9;
  int tiles = 0;
  for (int rep = 0; rep < 60; ++rep) {
    double t = now(); tiles = 0;
    for (int r = 0; r + R <= H; r += R) for (int q = 0; q + C <= W; q += C) { ++tiles;
      for (size_t k = 0; k < b.size(); ++k)
        tile<R, C, PF>(x + k * ch * channel + r * pitch + q * 16, pitch, b[k].count.data(), b[k].dist.data(), b[k].val.data(), acc, stride, M, k == 0); }
    best = std::min(best, now() - t);
  }
  double fma = double(nnz) * tiles * R * C;
  printf("%-24s M %d Cin %d ch %d RxC %dx%d pf %d: %.3f ns/FMA -> %.0f%% of 5.8 FMA/ns   (%.1f val/row-block)\n", name, M, Cin, ch, R, C, PF, best * 1e9 / fma, 100 * fma / best / 1e9 / 5.8, double(nnz) / M / b.size());
  free(x), free(acc);
}
int main() {
  bench<1, 7, 0>("all in L1", 4, 8, 8, 7, 7, .5);
  bench<1, 8, 0>("all in L1", 4, 8, 8, 8, 8, .5);
  bench<2, 7, 0>("all in L1", 4, 8, 8, 6, 7, .5);
  for (double d : {.1}) for (int M : {64, 256}) { int Cin = M; int H = M == 64 ? 14 : 7; H = 12; 
    int W = 14;
    for (int ch : {16, 22, 32, 64}) bench<1, 7, 0>("", M, Cin, ch, H, W, d);
    for (int ch : {16, 22}) bench<1, 7, 1>("", M, Cin, ch, H, W, d);
    for (int ch : {16, 22}) bench<1, 7, 2>("", M, Cin, ch, H, W, d);
    for (int ch : {8, 13, 16, 22}) bench<2, 7, 0>("", M, Cin, ch, H, W, d);
    for (int ch : {8, 13, 16, 22}) bench<2, 7, 1>("", M, Cin, ch, H, W, d);
    for (int ch : {8, 13, 16, 22}) bench<3, 7, 0>("", M, Cin, ch, H, W, d);
    for (int ch : {8, 13, 16, 22}) bench<3, 7, 1>("", M, Cin, ch, H, W, d);
    for (int ch : {8, 13, 16, 22}) bench<4, 4, 0>("", M, Cin, ch, H, 16, d);
    for (int ch : {8, 13, 16}) bench<4, 7, 0>("", M, Cin, ch, H, W, d);
  }
}
