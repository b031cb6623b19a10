/* handle.c — one Python object per shared object and process.
 *
 * A channel that arrives twice in a process is the same Python object, so `is` and identity in sets
 * hold within a process as == holds everywhere, and a message that carries a known channel costs a
 * look-up instead of an allocation. The table maps a key (segment offset, with the direction of a
 * channel view in the top bits) to a borrowed object; the object's dealloc takes itself out. Open
 * addressing with backward-shift deletion: no tombstones, so a table that has been large stays
 * fast.
 *
 * RECENT. A goroutine that moves drops its handles when it parks and makes them again when it goes
 * on: the same few, over and over. So the loop keeps the ones last made alive for a while
 * (`recent`, strong references, one place per key), which saves an object and two transactions each
 * time. They are let go when the M has had nothing to do for a moment (core_handle_rest): a channel
 * nobody else knows is then freed. Not so what stands in a timer heap: it would go on to fire while
 * all sleep, and keep the program from being seen to be dead.
 *
 * PICKLED by somebody's own pickle.dumps(), in a __getstate__ or to be a key elsewhere, a handle is a
 * name: bytes hold no reference. What has such a name stands in a map of the program's (hdr->pickled)
 * to its end, so the name is good in each of its processes, whoever dies, and nowhere else. What the
 * codec itself pickles has its handles as words of the blob (codec_pickle.c), and counts them. */
#include "codec.h"
#include "proc.h"

static uint32_t slot_of(uint64_t key, uint32_t cap)
{
    return (uint32_t)((key * 0x9E3779B97F4A7C15ULL) >> 32) & (cap - 1);
}

static PyObject *handle_get(CoreProg *prog, uint64_t key)
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

static bool timed(CoreProg *prog, const CoreHandle *h)
{
    const struct shm_obj *o = shm_at(&prog->loop, h->off);
    const struct shm_chan *ch = (const struct shm_chan *)(const void *)o;
    uint32_t kind = shm_kind(o);
    return kind == SHM_OBJ_CHAN ? ch->timer || ch->done : kind == SHM_OBJ_CONTEXT;
}

static int handle_put(CoreProg *prog, uint64_t key, PyObject *o)
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
    /* Nor is what a buffer holds kept longer than need be: it may be large. */
    bool buffer =
        ((CoreHandle *)o)->kind == HANDLE_FROZEN || ((CoreHandle *)o)->kind == HANDLE_SHARED;
    if (core_proc_cur == s && !buffer && !timed(prog, (CoreHandle *)o)) {
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

static void handle_del(CoreProg *prog, uint64_t key)
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

/* ---- the object ------------------------------------------------------------------------------ */

static struct kind {
    PyTypeObject *type;
    PyObject *nil;
} kinds[128];

PyObject *core_handle_wrap(CoreProg *prog, uint8_t kind, shm_off off)
{
    struct shm_ctx *c = core_ctx(prog);
    uint64_t key = SHM_HANDLE(kind, off);
    if (c == NULL)
        return NULL;
    PyObject *known = handle_get(prog, key);
    if (known != NULL) {
        shm_obj_unref(c, off);
        return Py_NewRef(known);
    }
    uint32_t slot;
    int r = shm_handle_hold(c, off, &slot);
    if (r < 0) {
        shm_obj_unref(c, off);
        core_shm_error(prog, r);
        return NULL;
    }
    CoreHandle *h = PyObject_New(CoreHandle, kinds[kind].type);
    if (h == NULL) {
        shm_handle_release(c, c->m1, slot);
        return NULL;
    }
    h->prog = (CoreProg *)Py_NewRef((PyObject *)prog);
    h->off = off;
    h->slot = slot;
    h->holder_m1 = c->m1;
    h->kind = kind;
    h->weakrefs = NULL;
    if (handle_put(prog, key, (PyObject *)h) < 0)
        Py_CLEAR(h);
    return (PyObject *)h;
}

void core_handle_dealloc(PyObject *o)
{
    CoreHandle *h = (CoreHandle *)o;
    if (h->weakrefs != NULL)
        PyObject_ClearWeakRefs(o);
    if (h->prog != NULL) {
        handle_del(h->prog, SHM_HANDLE(h->kind, h->off));
        if (h->prog->attached) {
            PyObject *type, *value, *tb;
            PyErr_Fetch(&type, &value, &tb);
            struct shm_ctx *c = core_ctx(h->prog);
            if (c != NULL)
                shm_handle_release(c, h->holder_m1, h->slot);
            PyErr_Restore(type, value, tb);
        }
        Py_DECREF(h->prog);
    }
    PyObject_Free(o);
}

/* From the offset, which is the same in every process (an address would not be). */
Py_hash_t core_handle_hash(PyObject *o)
{
    CoreHandle *h = (CoreHandle *)o;
    return h->prog != NULL ? (Py_hash_t)(h->off * 0x9E3779B97F4A7C15ULL >> 8) : 1;
}

PyObject *core_handle_richcompare(PyObject *a, PyObject *b, int op)
{
    if (Py_TYPE(b)->tp_richcompare != core_handle_richcompare || (op != Py_EQ && op != Py_NE))
        Py_RETURN_NOTIMPLEMENTED;
    CoreHandle *x = (CoreHandle *)a, *y = (CoreHandle *)b;
    /* A timer is no channel, a cancel function no context, though they share their objects. */
    if (x->kind != y->kind && (x->kind >= HANDLE_CHAN + 3 || y->kind >= HANDLE_CHAN + 3))
        return PyBool_FromLong(op == Py_NE);
    return PyBool_FromLong((x->prog == y->prog && x->off == y->off) == (op == Py_EQ));
}

PyObject *core_handle_reduce(PyObject *o, PyObject *none)
{
    CoreHandle *h = (CoreHandle *)o;
    if (h->kind == HANDLE_FROZEN || h->kind == HANDLE_SHARED || h->kind == HANDLE_DONEQ)
        return PyErr_Format(PyExc_TypeError, "a %s cannot be pickled", Py_TYPE(o)->tp_name);
    return PyObject_CallMethod(core_pickle, "pickled", "OOiK", o, h->prog, h->kind,
                               (unsigned long long)h->off);
}

/* ---- crossing -------------------------------------------------------------------------------- */

static uint64_t handle_word(PyObject *o)
{
    CoreHandle *h = (CoreHandle *)o;
    if (h->prog != core_prog_cur && h->prog != NULL) {
        PyErr_Format(core_err.SerializationError,
                     "a %s cannot cross to another runtime than the one that made it",
                     Py_TYPE(o)->tp_name);
        return UINT64_MAX;
    }
    return h->off;
}

static PyObject *handle_make(uint8_t kind, uint64_t off)
{
    if (off == 0 && kinds[kind].nil != NULL)
        return Py_NewRef(kinds[kind].nil);
    if (core_prog_cur == NULL) {
        PyErr_Format(PyExc_RuntimeError, "a %s arrived where no runtime is",
                     kinds[kind].type->tp_name);
        return NULL;
    }
    /* The bytes keep their reference until they are dropped: so it stands in one place or the other
     * if this M dies now. */
    struct shm_ctx *c = core_ctx(core_prog_cur);
    PyObject *known = handle_get(core_prog_cur, SHM_HANDLE(kind, off));
    if (c == NULL || known != NULL)
        return Py_XNewRef(known);
    shm_obj_ref_hand(c, off);
    return core_handle_wrap(core_prog_cur, kind, off);
}

int core_handle_kind(PyTypeObject *type, uint8_t kind)
{
    struct core_handle_type t = {type, kind, handle_word, handle_make};
    kinds[kind].type = type;
    return core_handle_register(&t);
}

void core_handle_nil(uint8_t kind, PyObject *nil)
{
    kinds[kind].nil = nil;
}
