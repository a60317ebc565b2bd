#include "threads/stay.h"

#include <pthread.h>
#include <unistd.h>

namespace tensor_ops {
namespace {

void wait_for_ever(void*) {
    for (;;) pause();
}

}  // namespace

// Compiled without exceptions: with them, glibc's handler is a destructor, which is reached by
// unwinding the stack.  libgcc does that, and crashes where the extension has an unwinder of its
// own (libc++'s, in wheels).  Without them, the handler is reached by longjmp.
void call_and_stay(void (*call)(void*), void* argument) {
    pthread_cleanup_push(wait_for_ever, nullptr);
    call(argument);
    pthread_cleanup_pop(0);
}

}  // namespace tensor_ops
