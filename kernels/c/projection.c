/* The projection of kernels/reference.py for CPUs: no head's output is ever written to memory, only to the cache. */
#include "projection.h"

#ifdef __x86_64__
#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f")))
#define LANES 16
#define ROWS 12
#include "loops.h"

#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define ROWS 6
#include "loops.h"
#endif

#define NAME(x) x##_plain
#define TARGET
#define LANES 4
#define ROWS 6
#include "loops.h"

/* The widest registers of this processor, in floats: the largest value that `lanes` of a call may have. */
int64_t fused_lanes(void) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f")) return 16;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
  return 4;
}

/* The size of a call, so that a caller of another version is noticed. */
int64_t fused_call_bytes(void) { return sizeof(Call); }

/* Floats that fused_run() needs for itself. */
int64_t fused_scratch(const Call *call) {
  const int64_t strip = 2 * call->lanes, strips = (call->d_model + strip - 1) / strip;
  return POSITIONS * (call->d_head + call->together * strips * strip);
}

/* Positions [begin, end) of a call. */
void fused_run(const Call *call, int64_t begin, int64_t end, float *scratch) {
#ifdef __x86_64__
  if (call->lanes == 16) {
    run_avx512(call, begin, end, scratch);
    return;
  }
  if (call->lanes == 8) {
    run_avx2(call, begin, end, scratch);
    return;
  }
#endif
  run_plain(call, begin, end, scratch);
}
