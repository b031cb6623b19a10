/* prog.h — what the files of Program share: prog.c (its life), mstart.c (an M's), keeper.c (its
 * processes) and stats.c (looking at it). */
#ifndef MPGORT_PROG_H
#define MPGORT_PROG_H

#include "proc.h"

/* A row of a method table: prog_NAME, with NAME_doc. */
#define PROG_METHOD(name, flags) {#name, (PyCFunction)(void *)prog_##name, flags, name##_doc}
extern PyMethodDef core_prog_mstart[], core_prog_keeper[], core_prog_look[];

/* The mapping is there, and a watcher's header is that of now; else false and an exception. */
bool core_prog_usable(CoreProg *p);
/* o, which a watcher may have read from the segment; or NULL and BadSegment:
 * it is worth nothing. */
PyObject *core_prog_seen(CoreProg *p, PyObject *o);
/* m is to look up from its queue. */
void core_prog_notify(struct shm_ctx *c, struct shm_m *m, uint32_t attn);

#endif
