// The weight types, by their bits: the run-time compiler has no headers, so none are needed here.
//
// Each type T has T::Bits, its form in memory; T::read(Bits), the exact value; T::order(Bits), an integer that grows
// with it; and T::write(double) -> Bits, which rounds as PyTorch does: to float32 first, then to nearest, ties to even.

#define SERE_INLINE static __device__ __forceinline__

// Sign and size, as floating-point numbers have them, to an integer in the same order. Zeros are not compared.
SERE_INLINE int in_order(int bits) { return bits ^ (bits >> 31 & 0x7fffffff); }
SERE_INLINE long long in_order(long long bits) { return bits ^ (bits >> 63 & 0x7fffffffffffffffLL); }

struct F64 {
    typedef double Bits;
    SERE_INLINE long long order(Bits bits) { return in_order(__double_as_longlong(bits)); }
    SERE_INLINE double read(Bits bits) { return bits; }
    SERE_INLINE Bits write(double value) { return value; }
};

struct F32 {
    typedef float Bits;
    SERE_INLINE int order(Bits bits) { return in_order(__float_as_int(bits)); }
    SERE_INLINE float read(Bits bits) { return bits; }
    SERE_INLINE Bits write(double value) { return static_cast<float>(value); }
};

struct BF16 {
    typedef unsigned short Bits;
    SERE_INLINE int order(Bits bits) { return in_order(static_cast<int>(static_cast<unsigned>(bits) << 16)); }
    SERE_INLINE float read(Bits bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
    SERE_INLINE Bits write(double value) {
        const unsigned bits = __float_as_uint(static_cast<float>(value));
        const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        return static_cast<Bits>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);  // NaN stays NaN
    }
};

struct F16 {
    typedef unsigned short Bits;
    SERE_INLINE int order(Bits bits) { return in_order(static_cast<int>(static_cast<unsigned>(bits) << 16)); }
    SERE_INLINE float read(Bits bits) {
        // The exponent's bias differs by 112: one exact product, subnormal numbers included.
        const unsigned wide = (bits & 0x7fffu) << 13;
        const bool finite = wide < 0x0f800000u;
        const float value = finite ? __uint_as_float(wide) * 0x1p112f : __uint_as_float(wide | 0x70000000u);
        return bits & 0x8000u ? -value : value;
    }
    SERE_INLINE Bits write(double value) {
        const unsigned bits = __float_as_uint(static_cast<float>(value));
        const unsigned size = bits & 0x7fffffffu;
        unsigned half;
        if (size >= 0x47800000u) {  // 65536 and more: infinity; NaN stays NaN
            half = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
        } else if (size < 0x38800000u) {  // subnormal: a multiple of 2^-24
            half = static_cast<unsigned>(__float2int_rn(__uint_as_float(size) * 0x1p24f));
        } else {
            half = ((size + 0xfffu + ((size >> 13) & 1u)) >> 13) - (112u << 10);
        }
        return static_cast<Bits>(half | ((bits >> 16) & 0x8000u));
    }
};

// Whether a slot of this weight counts: neither 0 nor NaN.
template <class Number>
SERE_INLINE bool has_weight(Number weight) { return weight < 0 || weight > 0; }

// An expert's mass is a sum of integers: no order of addition can change it. Clamped, so that no sum overflows.
constexpr double MASS_UNITS = 17179869184.0, MASS_BOUND = 274877906944.0;
constexpr double MASS_ROOT = 2.0;  // its fourth power has as many units as the bound
// A sum with 1.5 x 2^52 units has the other number, rounded to whole units, in its last bits: ties to the even one.
constexpr double MASS_ROUNDER = 6755399441055744.0 / MASS_UNITS;
template <class Number>
SERE_INLINE long long mass_units(Number weight) {
    constexpr Number root = static_cast<Number>(MASS_ROOT);
    const double wide = weight, square = wide * wide, power = square * square;
    const long long units = __double_as_longlong(power + MASS_ROUNDER) - __double_as_longlong(MASS_ROUNDER);
    return weight >= root || weight <= -root ? static_cast<long long>(MASS_BOUND) : units;
}
