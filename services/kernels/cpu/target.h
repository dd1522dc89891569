// For the files of cpu/: each compiles the .inc files once more inside a region of functions for
// its own instruction set. Flags of whole files would leak such code into inline functions of
// headers; so every header is included before the region begins, and no std template is used inside
// it.
#pragma once

// FEAT_DotProd as each compiler names it.
#if defined(__clang__)
#define SY_DOTPROD "dotprod"
#else
#define SY_DOTPROD "arch=armv8.2-a+dotprod"
#endif

#define SY_INLINE inline __attribute__((always_inline))

#define SY_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SY_TARGET_BEGIN(features) \
  SY_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define SY_TARGET_END SY_PRAGMA(clang attribute pop)
#define SY_UNROLL SY_PRAGMA(unroll)
#else
#define SY_TARGET_BEGIN(features) SY_PRAGMA(GCC push_options) SY_PRAGMA(GCC target(features))
#define SY_TARGET_END SY_PRAGMA(GCC pop_options)
#define SY_UNROLL SY_PRAGMA(GCC unroll 16)
#endif
