// A call that may end its thread, and must not.
#pragma once

namespace tensor_ops {

// call(argument).  If the call ends the thread (pthread_exit), the thread waits for ever instead.
void call_and_stay(void (*call)(void*), void* argument);

}  // namespace tensor_ops
