// The weight types, by their bits: the run-time compiler has no headers, so none are needed here.
//
// Each type T has T::Bits, what lies in memory; T::Wide, what is compared, exact; T::least(), below every finite
// weight; T::read(Bits) -> Wide; and T::write(double) -> Bits, which rounds as PyTorch does: to float32 first, then to nearest, ties to even.

#define SERE_INLINE static __device__ __forceinline__

struct F64 {
    typedef double Bits;
    typedef double Wide;
    SERE_INLINE Wide least() { return -__longlong_as_double(0x7ff0000000000000LL); }
    SERE_INLINE Wide read(Bits bits) { return bits; }
    SERE_INLINE Bits write(double value) { return value; }
};

struct F32 {
    typedef float Bits;
    typedef float Wide;
    SERE_INLINE Wide least() { return -__uint_as_float(0x7f800000u); }
    SERE_INLINE Wide read(Bits bits) { return bits; }
    SERE_INLINE Bits write(double value) { return static_cast<float>(value); }
};

struct BF16 {
    typedef unsigned short Bits;
    typedef float Wide;
    SERE_INLINE Wide least() { return -__uint_as_float(0x7f800000u); }
    SERE_INLINE Wide read(Bits bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
    SERE_INLINE Bits write(double value) {
        const unsigned bits = __float_as_uint(static_cast<float>(value));
        return static_cast<Bits>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
};

struct F16 {
    typedef unsigned short Bits;
    typedef float Wide;
    SERE_INLINE Wide least() { return -__uint_as_float(0x7f800000u); }
    SERE_INLINE Wide read(Bits bits) {
        // The exponent's bias differs by 112: one exact product, subnormal numbers included.
        const float value = __uint_as_float((bits & 0x7fffu) << 13) * 0x1p112f;
        return bits & 0x8000u ? -value : value;
    }
    SERE_INLINE Bits write(double value) {
        const unsigned bits = __float_as_uint(static_cast<float>(value));
        const unsigned size = bits & 0x7fffffffu;
        unsigned half;
        if (size >= 0x47800000u) {  // 65536 and more: infinity
            half = 0x7c00u;
        } else if (size < 0x38800000u) {  // subnormal: a multiple of 2^-24
            half = static_cast<unsigned>(__float2int_rn(__uint_as_float(size) * 0x1p24f));
        } else {
            half = ((size + 0xfffu + ((size >> 13) & 1u)) >> 13) - (112u << 10);
        }
        return static_cast<Bits>(half | ((bits >> 16) & 0x8000u));
    }
};

// An expert's mass is a sum of integers: no order of addition can change it.
SERE_INLINE long long mass_units(float weight) { return __float2ll_rn(weight * 0x1p24f); }
SERE_INLINE long long mass_units(double weight) { return __double2ll_rn(weight * 0x1p24); }
