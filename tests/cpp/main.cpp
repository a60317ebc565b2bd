// tests [--isas=ISA,...] [GROUP...]: runs the tests: all of them, or the groups that are named
// (elementwise, team, ...). Tests of kernels run on each ISA that this CPU has, or on those of
// --isas alone.
//
// Each test is a line, "group: name [isa] ... ok" or "... FAILED", the checks that failed beneath.
// The first line names the ISAs.
// Exit status: 0, or 1 when a test failed, or 2 when a named group has no tests.

#include <cstdio>
#include <exception>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "check.h"
#include "dispatch.h"

namespace check {
namespace {

std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

std::string group_of(const std::string& path) {
    const std::string name = file_name(path);  // test_<group>.cpp
    return name.substr(5, name.size() - 5 - 4);
}

template <class F>
bool passes(const Case& test, const std::string& isa, F&& f) {
    // Flushed first, so that the last line tells where a crash was.
    std::printf("%s: %s%s ... ", test.group.c_str(), test.name.c_str(),
                isa.empty() ? "" : (" [" + isa + "]").c_str());
    std::fflush(stdout);
    failures = 0;
    try {
        f();
    } catch (const std::exception& error) {
        fail(std::string("exception: ") + error.what(), std::source_location::current());
    }
    if (failures > shown_failures) std::printf("\n    and %d more", failures - shown_failures);
    std::printf("%s\n", failures ? "\n    FAILED" : "ok");
    return failures == 0;
}

bool passes_on_each_isa(const Case& test, const std::vector<std::string>& isas) {
    bool all = true;
    for (const std::string& isa : isas) {
        tensor_ops::select_isa(isa);
        const tensor_ops::KernelTable& table = tensor_ops::kernels();
        all &= passes(test, isa, [&] {
            check::equal(std::string(table.isa), isa, "the ISA that was forced");
            test.each_isa(table);
        });
    }
    tensor_ops::select_isa("");
    return all;
}

}  // namespace

std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

Registration::Registration(const char* file, const char* name, void (*test)()) {
    cases().push_back({group_of(file), name, test, nullptr});
}

Registration::Registration(const char* file, const char* name,
                           void (*test)(const tensor_ops::KernelTable&)) {
    cases().push_back({group_of(file), name, nullptr, test});
}

void fail(const std::string& message, const std::source_location& where) {
    if (++failures > shown_failures) return;
    std::printf("\n    %s:%u: %s", file_name(where.file_name()).c_str(),
                static_cast<unsigned>(where.line()), message.c_str());
    std::fflush(stdout);
}

}  // namespace check

int main(int argc, char** argv) {
    tensor_ops::select_isa("");
    std::vector<std::string> isas = tensor_ops::available_isas();
    std::set<std::string> wanted(argv + 1, argv + argc);
    constexpr std::string_view option = "--isas=";
    if (argc > 1 && std::string_view(argv[1]).starts_with(option)) {
        wanted.erase(argv[1]);
        const std::string names = "," + std::string(argv[1] + option.size()) + ",";
        std::erase_if(isas, [&](const std::string& isa) {
            return names.find("," + isa + ",") == std::string::npos;
        });
    }
    std::printf("isas:");
    for (const std::string& isa : isas) std::printf(" %s", isa.c_str());
    std::printf("\n");
    std::set<std::string> missing = wanted;
    bool all = true;
    for (const check::Case& test : check::cases()) {
        if (!wanted.empty() && !wanted.contains(test.group)) continue;
        missing.erase(test.group);
        all &= test.each_isa ? check::passes_on_each_isa(test, isas)
                             : check::passes(test, "", test.once);
    }
    for (const std::string& group : missing) std::printf("no tests in group %s\n", group.c_str());
    if (!missing.empty()) return 2;
    return all ? 0 : 1;
}
