// The tests' own few words: registering a test, and checks that report what they saw.
//
//     TEST(a_team_of_one_is_the_caller) { ... }                     runs once
//     KERNEL_TEST(silu_is_within_its_bound) { table.silu(...) }     runs on every ISA, as `table`
//
// A check that fails prints one line with the values and the test goes on.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels.h"

namespace check {

struct Case {
    std::string group;  // elementwise, for a test in test_elementwise.cpp
    std::string name;
    void (*once)();
    void (*each_isa)(const tensor_ops::KernelTable&);
};

// All tests of the program, in the order of the linker's files and then of their lines.
std::vector<Case>& cases();

struct Registration {
    Registration(const char* file, const char* name, void (*test)());
    Registration(const char* file, const char* name, void (*test)(const tensor_ops::KernelTable&));
};

inline int failures = 0;  // of the test that is running
inline constexpr int shown_failures = 5;

// Reports a failure of the test that is running; after the first few it is only counted.
void fail(const std::string& message, const std::source_location& where);

template <class T>
std::string text(const T& value) {
    std::ostringstream out;
    out.precision(9);  // enough to tell any two floats apart
    if constexpr (std::is_same_v<T, std::byte> || std::is_same_v<T, std::uint8_t> ||
                  std::is_same_v<T, std::int8_t>)
        out << static_cast<int>(value);
    else
        out << value;
    return out.str();
}

inline void that(bool truth, const std::string& what,
                 const std::source_location& where = std::source_location::current()) {
    if (!truth) fail(what, where);
}

template <class A, class B>
void equal(const A& actual, const B& expected, std::string_view what,
           const std::source_location& where = std::source_location::current()) {
    if (!(actual == expected))
        fail(std::string(what) + ": " + text(actual) + ", expected " + text(expected), where);
}

// |actual - exact| <= bound; NaN where the exact value is NaN; infinite where it is, or where it
// may round to float32's infinity.
inline bool is_near(float actual, double exact, double bound) {
    if (std::isnan(exact)) return std::isnan(actual);
    if (static_cast<double>(actual) == exact) return true;
    const bool overflows = std::abs(exact) + bound >= 0x1.ffffffp127;
    if (std::isinf(actual)) return overflows && std::signbit(actual) == std::signbit(exact);
    return std::abs(static_cast<double>(actual) - exact) <= bound;
}

// What is checked, and where in the source.
struct Subject {
    const char* name;
    std::source_location where;
    Subject(const char* name_, std::source_location where_ = std::source_location::current())
        : name(name_), where(where_) {}
};

// `at` says which element it is: anything that text() prints, one after the other.
template <class... At>
void near(const Subject& subject, float actual, double exact, double bound, const At&... at) {
    if (is_near(actual, exact, bound)) return;
    if (failures >= shown_failures) return fail("", subject.where);
    std::string which;
    ((which += text(at)), ...);
    const double error = std::abs(static_cast<double>(actual) - exact);
    fail(std::string(subject.name) + " " + which + ": " + text(actual) + ", exact " + text(exact) +
             ", error " + text(error) + ", allowed " + text(bound),
         subject.where);
}

// f() throws std::invalid_argument whose message contains `words`.
template <class F>
void refused(F&& f, std::string_view words,
             const std::source_location& where = std::source_location::current()) {
    try {
        f();
    } catch (const std::invalid_argument& error) {
        const std::string message = error.what();
        if (message.find(words) == std::string::npos)
            fail("the message is \"" + message + "\", expected \"" + std::string(words) + "\"",
                 where);
        return;
    }
    fail("nothing was thrown, expected \"" + std::string(words) + "\"", where);
}

}  // namespace check

#define TEST(name)                                                             \
    static void name();                                                        \
    static const check::Registration registered_##name(__FILE__, #name, name); \
    static void name()

#define KERNEL_TEST(name)                                                      \
    static void name(const tensor_ops::KernelTable& table);                    \
    static const check::Registration registered_##name(__FILE__, #name, name); \
    static void name(const tensor_ops::KernelTable& table)
