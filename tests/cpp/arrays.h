// Arrays in awkward places, and numbers to fill them with.
#pragma once

#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "check.h"

namespace arrays {

#if defined(__SANITIZE_ADDRESS__)
inline constexpr std::size_t margin = 0;  // so that AddressSanitizer sees a read past the end
#else
inline constexpr std::size_t margin = 64;
#endif

// n elements that start `offset` elements after a 64-byte boundary.  Every byte in and around it is
// 0xff (NaN, as a float) at first, and those around it must still be in the end: writing outside
// fails the test, reading outside gives NaN.
template <class T>
class Array {
 public:
    explicit Array(std::size_t n, std::size_t offset = 0,
                   std::source_location where = std::source_location::current())
        : before_(margin + offset * sizeof(T)),
          size_(n),
          memory_(static_cast<unsigned char*>(::operator new(bytes(), alignment))),
          where_(where) {
        std::memset(memory_.get(), 0xff, bytes());
    }
    Array(Array&&) = default;
    ~Array() {
        if (!memory_) return;  // moved from
        bool intact = true;
        for (std::size_t i = 0; i < bytes(); ++i)
            if (i < before_ || i >= before_ + size_ * sizeof(T)) intact &= memory_.get()[i] == 0xff;
        check::that(intact, "written outside of the array made here", where_);
    }

    T* data() { return reinterpret_cast<T*>(memory_.get() + before_); }
    const T* data() const { return reinterpret_cast<const T*>(memory_.get() + before_); }
    std::size_t size() const { return size_; }
    T& operator[](std::size_t i) { return data()[i]; }
    const T& operator[](std::size_t i) const { return data()[i]; }
    T* begin() { return data(); }
    T* end() { return data() + size_; }
    const T* begin() const { return data(); }
    const T* end() const { return data() + size_; }

 private:
    static constexpr std::align_val_t alignment{64};
    struct Delete {
        void operator()(unsigned char* p) const { ::operator delete(p, alignment); }
    };
    std::size_t bytes() const { return before_ + size_ * sizeof(T) + margin; }

    std::size_t before_, size_;
    std::unique_ptr<unsigned char, Delete> memory_;
    std::source_location where_;
};

using Floats = Array<float>;

template <class T, class Values>
Array<T> copy(const Values& values, std::size_t offset = 0) {
    Array<T> result(values.size(), offset);
    std::size_t i = 0;
    for (const auto& value : values) result[i++] = static_cast<T>(value);
    return result;
}

inline Floats filled(std::size_t n, float value, std::size_t offset = 0) {
    Floats x(n, offset);
    for (float& v : x) v = value;
    return x;
}

// Gaussian numbers, the same in every run.
inline Floats normal(std::size_t n, unsigned seed, double scale = 1.0, std::size_t offset = 0) {
    std::mt19937 engine(seed + 1);
    std::normal_distribution<double> distribution(0.0, scale);
    Floats x(n, offset);
    for (float& v : x) v = static_cast<float>(distribution(engine));
    return x;
}

// Whole numbers from low to high.
inline Floats whole_numbers(std::size_t n, unsigned seed, int low, int high) {
    std::mt19937 engine(seed + 1);
    std::uniform_int_distribution<int> distribution(low, high);
    Floats x(n);
    for (float& v : x) v = static_cast<float>(distribution(engine));
    return x;
}

template <class T>
bool same_bytes(const Array<T>& a, const Array<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Every tail of every vector length (16 floats at most, unrolled 4 times), and two large odd ones.
inline std::vector<std::size_t> sizes() {
    std::vector<std::size_t> all;
    for (std::size_t n = 0; n <= 70; ++n) all.push_back(n);
    all.push_back(127);
    all.push_back(4097);
    return all;
}

inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
inline constexpr double roundoff = 0x1p-24;  // one rounding's relative error
inline constexpr double tiny = 0x1p-149;  // the smallest denormal: what a rounding costs near zero
inline constexpr double smallest_normal = 0x1p-126;

// The distance between float32 neighbours at an exact value.
inline double ulp(double exact) {
    if (!std::isfinite(exact)) return 0.0;
    int exponent = 0;
    std::frexp(exact, &exponent);  // 2^(exponent - 1) <= |exact| < 2^exponent
    return std::ldexp(1.0, std::max(exponent - 1, -126) - 23);
}

}  // namespace arrays
