// Work without Python's lock.
#pragma once

#include <Python.h>
#include <unistd.h>

namespace tensor_ops::bindings {

// Gives the GIL back for as long as it lives; what runs meanwhile must not touch Python.
class WithoutGil {
 public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    WithoutGil(const WithoutGil&) = delete;
    // Where the interpreter has ended meanwhile, a daemon thread never gets the GIL again.  CPython
    // from 3.14 on lets it wait for ever; before, it ends the thread by unwinding its stack, which
    // no destructor survives and which would drop references without the GIL.  So the thread waits
    // here, too, and the process ends without it.
    ~WithoutGil() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) pause();
        }
    }

 private:
    PyThreadState* state_;
};

}  // namespace tensor_ops::bindings
