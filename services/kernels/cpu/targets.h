// The tables that cpu/ fills. They may be called only on a CPU that has the instructions.
#pragma once

#include "services/kernels/ops.h"

namespace switchyard::kernels {

#if defined(__x86_64__)
extern const Ops kAvx2Ops;
extern const Ops kAvx512Ops;

// As Ops::mat_mul: bf16 rows with bf16 kOutIn weights in their own way, the rest as kAvx512Ops.
void MatMulAvx512Bf16(const MatMulTask& task, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                      float* scratch);
void MatMulAmx(const MatMulTask& task, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
               float* scratch);

// As Ops::attention: over a bf16 cache in its own way, the rest as kAvx512Ops.
void AttentionAmx(const AttentionTask& task, const AttentionPart& part, float* scratch);

// As Ops::quantize and Ops::mat_mul_int8.
void QuantizeAvx2(const bf16* x, int64_t in, const QuantizedRow& out);
void MatMulInt8Avx2(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                    int64_t n0, int64_t n1, float* scratch);
void MatMulInt8Amx(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                   int64_t n0, int64_t n1, float* scratch);
void MatMulInt8Vnni(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                    int64_t n0, int64_t n1, float* scratch);
#elif defined(__aarch64__)
extern const Ops kNeonOps;

// As Ops::quantize and Ops::mat_mul_int8.
void QuantizeNeon(const bf16* x, int64_t in, const QuantizedRow& out);
void MatMulInt8Neon(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                    int64_t n0, int64_t n1, float* scratch);
void MatMulInt8Dotprod(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                       int64_t n0, int64_t n1, float* scratch);
#endif

}  // namespace switchyard::kernels
