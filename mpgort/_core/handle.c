/* handle.c — one Python object per shared object and process.
 *
 * A channel that arrives twice in a process is the same Python object, so `is` and identity in sets
 * hold within a process as == holds everywhere, and a message that carries a known channel costs a
 * look-up instead of an allocation. The table maps a key (segment offset, with the direction of a
 * channel view in the top bits) to a borrowed object; the object's dealloc takes itself out. Open
 * addressing with backward-shift deletion: no tombstones, so a table that has been large stays fast.
 *
 * RECENT. A goroutine that moves drops its handles when it parks and makes them again when it goes on:
 * the same few, over and over. So the loop keeps the ones last made alive for a while (`recent`, strong
 * references, one place per key), which saves an object and two transactions each time. They are let go
 * when the M has had nothing to do for a moment (core_handle_rest): a channel nobody else knows is then
 * freed. */
#include "proc.h"

static uint32_t slot_of(uint64_t key, uint32_t cap)
{
    return (uint32_t)((key * 0x9E3779B97F4A7C15ULL) >> 32) & (cap - 1);
}

PyObject *core_handle_get(CoreProg *prog, uint64_t key)
{
    struct core_proc *s = prog->proc;
    if (s == NULL || s->slots_cap == 0)
        return NULL;
    for (uint32_t i = slot_of(key, s->slots_cap);; i = (i + 1) & (s->slots_cap - 1)) {
        if (s->slots[i].key == key)
            return s->slots[i].obj;
        if (s->slots[i].key == 0)
            return NULL;
    }
}

int core_handle_put(CoreProg *prog, uint64_t key, PyObject *o)
{
    struct core_proc *s = core_proc_get(prog);
    if (s == NULL)
        return -1;
    if ((s->nslots + 1) * 4 > s->slots_cap * 3) {
        uint32_t cap = s->slots_cap ? s->slots_cap * 2 : 64;
        struct core_slot *t = PyMem_Calloc(cap, sizeof *t);
        if (t == NULL)
            return PyErr_NoMemory(), -1;
        for (uint32_t i = 0; i < s->slots_cap; i++)
            if (s->slots[i].key != 0) {
                uint32_t k = slot_of(s->slots[i].key, cap);
                while (t[k].key != 0)
                    k = (k + 1) & (cap - 1);
                t[k] = s->slots[i];
            }
        PyMem_Free(s->slots);
        s->slots = t;
        s->slots_cap = cap;
    }
    uint32_t i = slot_of(key, s->slots_cap);
    while (s->slots[i].key != 0)
        i = (i + 1) & (s->slots_cap - 1);
    s->slots[i] = (struct core_slot){key, o};
    s->nslots++;
    if (core_proc_cur == s) {
        PyObject **r = &s->recent[slot_of(key, CORE_RECENT)], *old = *r;
        *r = Py_NewRef(o);
        Py_XDECREF(old);
    }
    return 0;
}

void core_handle_rest(struct core_proc *s)
{
    for (uint32_t i = 0; i < CORE_RECENT; i++)
        Py_CLEAR(s->recent[i]);
}

void core_handle_del(CoreProg *prog, uint64_t key)
{
    struct core_proc *s = prog->proc;
    if (s == NULL || s->slots_cap == 0)
        return;
    uint32_t mask = s->slots_cap - 1, i = slot_of(key, s->slots_cap);
    while (s->slots[i].key != key) {
        if (s->slots[i].key == 0)
            return;
        i = (i + 1) & mask;
    }
    s->nslots--;
    for (uint32_t j = i;;) {
        s->slots[i].key = 0;
        uint32_t home;
        do {
            j = (j + 1) & mask;
            if (s->slots[j].key == 0)
                return;
            home = slot_of(s->slots[j].key, s->slots_cap);
        } while (i <= j ? (i < home && home <= j) : (i < home || home <= j));
        s->slots[i] = s->slots[j];
        i = j;
    }
}
