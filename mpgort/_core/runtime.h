/* runtime.h — what the verbs for users (runtime.c) take of G and M as objects (gm.c). */
#ifndef MPGORT_RUNTIME_H
#define MPGORT_RUNTIME_H

#include "proc.h"

typedef struct {
    PyObject_HEAD CoreProg *prog;
    shm_gref g;
    uint64_t goid;
} CoreG;
extern PyTypeObject core_G_Type;

PyObject *core_g_make(CoreProg *prog, shm_gref gr, uint64_t goid);
/* o as a G of a program that is up, borrowed; NULL: TypeError, or that it has ended. */
CoreG *core_g_arg(PyObject *o, const char *who);
const char *core_status_name(unsigned st);
PyObject *core_runtime_error(const char *text); /* RuntimeError; NULL */

#endif
