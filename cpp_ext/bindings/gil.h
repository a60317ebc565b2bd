// Work without Python's lock.
#pragma once

#include <Python.h>

#include "threads/stay.h"

namespace tensor_ops::bindings {

// Releases the GIL while the object lives.  The code that runs meanwhile must not touch Python.
class WithoutGil {
 public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    WithoutGil(const WithoutGil&) = delete;
    // If the interpreter has ended meanwhile, a daemon thread never gets the GIL again.  CPython
    // 3.14 and later let it wait for ever.  Earlier versions end the thread by unwinding its stack,
    // which would end the process in a destructor, or drop references without the GIL.  So the
    // thread waits here, too, and the process ends without it.
    ~WithoutGil() {
        call_and_stay([](void* state) { PyEval_RestoreThread(static_cast<PyThreadState*>(state)); },
                      state_);
    }

 private:
    PyThreadState* state_;
};

}  // namespace tensor_ops::bindings
