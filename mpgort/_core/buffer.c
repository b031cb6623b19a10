/* buffer.c — arrays cross without a copy: the handle of a shared block of bytes, and how the codec
 * uses it.
 *
 * A Buffer is a handle (handle.c) that exports its block by the buffer protocol. What is built on
 * it, a memoryview, a NumPy array, a slice of one, keeps it alive, so the block lives as long as
 * the last of them in any process. Of its two kinds one is FROZEN: written once by who sent it,
 * read-only from then on; the other is SHARED (mpgort.shared): writable by all.
 *
 * WHO USES IT. An array's own tag (codec_array.c) says which part of which Buffer its bytes are.
 * In a pickle, protocol 5 hands over what is large as a PickleBuffer, and asks for a persistent id
 * first, as for every object. So a buffer needs no machinery but that of handles within pickles
 * (codec_pickle.c): its id is (word of the handle, start, length, read-only). Either way:
 *   memory of a Buffer    whatever its size, its handle: nothing is written. It is found by its
 *                         address, so slices and views of views are slices of the same block.
 *   other memory, a copy  of CORE_BUFFER_MIN bytes or more, in a value: a new frozen block
 *   other memory, a move  stays in the bytes, and counts towards the goroutine's budget: its own
 *                         array is to be its own, and writable, wherever it goes on
 *
 * Rejected: to give bytes and bytearray the same way. They would arrive as something that is
 * neither. Who wants that sends memoryview(b), which arrives as a read-only memoryview.
 *
 * THE MAPPING outlives its program while a Buffer that was ever exported lives (CoreProg.exports):
 * a result that is an array can be used after the end of the run that made it. Not only while an
 * export is out: NumPy keeps the object, and lets go of the export. */
#include "codec.h"
#include "proc.h"
#include <stddef.h>

static PyTypeObject buffer_types[2];
#define Frozen_Type buffer_types[0]
#define Shared_Type buffer_types[1]

static struct shm_array *array_of(CoreHandle *h)
{
    return (struct shm_array *)(void *)(h->prog->loop.base + h->off);
}

/* ---- those with exports, by address ---------------------------------------------------------- */

static CoreHandle **live; /* each is in it from its first export on; under the GIL */
static size_t nlive, live_cap;

static int note_live(CoreHandle *h)
{
    for (size_t i = 0; i < nlive; i++)
        if (live[i] == h)
            return 0;
    if (nlive == live_cap) {
        size_t cap = live_cap ? live_cap * 2 : 64;
        CoreHandle **t = PyMem_Realloc(live, cap * sizeof *t);
        if (t == NULL)
            return PyErr_NoMemory(), -1;
        live = t;
        live_cap = cap;
    }
    live[nlive++] = h;
    h->prog->exports++;
    return 0;
}

/* The Buffer of prog in whose block these bytes lie; borrowed, NULL: none. */
static CoreHandle *buffer_at(CoreProg *prog, const void *p, Py_ssize_t n)
{
    const uint8_t *at = p, *base = prog->loop.base;
    if (at < base || at >= base + prog->loop.mapped)
        return NULL;
    for (size_t i = nlive; i-- > 0;) {
        CoreHandle *h = live[i];
        if (h->prog != prog)
            continue;
        const uint8_t *data = array_of(h)->data;
        if (at >= data && at + n <= data + array_of(h)->bytes)
            return h;
    }
    return NULL;
}

/* ---- the type -------------------------------------------------------------------------------- */

static int buffer_get(PyObject *o, Py_buffer *b, int flags)
{
    CoreHandle *h = (CoreHandle *)o;
    if (core_ctx(h->prog) == NULL || note_live(h) < 0)
        return -1;
    struct shm_array *a = array_of(h);
    if (PyBuffer_FillInfo(b, o, a->data, (Py_ssize_t)a->bytes, h->kind == HANDLE_FROZEN, flags) < 0)
        return -1;
    return 0;
}

static void buffer_dealloc(PyObject *o)
{
    CoreProg *prog = (CoreProg *)Py_NewRef(((CoreHandle *)o)->prog);
    size_t i = nlive;
    while (i > 0 && (PyObject *)live[i - 1] != o)
        i--;
    core_handle_dealloc(o);
    if (i > 0) {
        live[i - 1] = live[--nlive];
        core_unexport(prog);
    }
    Py_DECREF(prog);
}

static Py_ssize_t buffer_len(PyObject *o)
{
    CoreHandle *h = (CoreHandle *)o;
    return core_ctx(h->prog) == NULL ? -1 : (Py_ssize_t)array_of(h)->bytes;
}

static PyObject *buffer_new(CoreProg *prog, uint8_t kind, uint64_t bytes)
{
    struct shm_ctx *c = core_ctx(prog);
    shm_off off;
    if (c == NULL)
        return NULL;
    int r = shm_array_new(c, bytes, &off);
    if (r < 0) {
        core_shm_error(prog, r);
        return NULL;
    }
    return core_handle_wrap(prog, kind, off);
}

/* Its bytes, all of which are written next. */
static uint8_t *to_write(CoreHandle *h)
{
    struct shm_array *a = array_of(h);
    shm_populate(a->data, a->bytes);
    return a->data;
}

/* ---- in a blob ------------------------------------------------------------------------------- */

static CoreHandle *buffer_holding(const void *p, Py_ssize_t n)
{
    CoreProg *prog = core_prog_cur;
    return prog != NULL && prog->attached ? buffer_at(prog, p, n) : NULL;
}

bool core_buffer_holds(const void *p, Py_ssize_t n)
{
    return buffer_holding(p, n) != NULL;
}

void core_buffer_fill(PyObject *buffer, const void *from)
{
    CoreHandle *h = (CoreHandle *)buffer;
    Py_BEGIN_ALLOW_THREADS
        memcpy(to_write(h), from, array_of(h)->bytes);
    Py_END_ALLOW_THREADS
}

int core_buffer_place(struct enc *E, const void *p, Py_ssize_t n, bool readonly,
                      struct core_place *at, PyObject **fresh)
{
    CoreProg *prog = core_prog_cur;
    CoreHandle *h = buffer_holding(p, n);
    *at = (struct core_place){0, 0, readonly};
    *fresh = NULL;
    if (h != NULL) {
        Py_INCREF(h);
        at->start = (const uint8_t *)p - array_of(h)->data;
    } else if (E->moving || n < CORE_BUFFER_MIN || prog == NULL || !prog->attached) {
        return 0;
    } else {
        h = (CoreHandle *)buffer_new(prog, HANDLE_FROZEN, (uint64_t)n);
        if (h == NULL)
            return -1;
        at->readonly = true;
        *fresh = Py_NewRef(h);
    }
    at->word = enc_handle_word(E, (PyObject *)h, how_of(Py_TYPE(h))->handle);
    Py_DECREF(h);
    return at->word != 0 ? 1 : -1;
}

PyObject *core_buffer_placed(struct core_words *W, struct core_place at, Py_ssize_t n)
{
    const struct core_handle_type *t = core_handle_type_of((uint8_t)(at.word >> 56));
    if (t == NULL || (t->kind != HANDLE_FROZEN && t->kind != HANDLE_SHARED))
        return dec_bad("a buffer of no known kind");
    PyObject *h = dec_handle_word(W, t->kind, at.word & OFFSET_MASK), *part = NULL;
    if (h == NULL)
        return NULL;
    Py_ssize_t len = buffer_len(h);
    if (len < 0 || at.start < 0 || n < 0 || at.start > len - n) {
        Py_DECREF(h);
        return len < 0 ? NULL : dec_bad("a part of a buffer beyond its end");
    }
    PyObject *view = PyMemoryView_FromObject(h);
    Py_DECREF(h);
    if (view != NULL && (at.start > 0 || n < len)) {
        PyObject *from = PyLong_FromSsize_t(at.start), *to = PyLong_FromSsize_t(at.start + n);
        PyObject *slice = from && to ? PySlice_New(from, to, NULL) : NULL;
        part = slice ? PyObject_GetItem(view, slice) : NULL;
        Py_XDECREF(from);
        Py_XDECREF(to);
        Py_XDECREF(slice);
        Py_SETREF(view, part);
    }
    if (view != NULL && at.readonly && t->kind == HANDLE_SHARED)
        Py_SETREF(view, PyObject_CallMethod(view, "toreadonly", NULL));
    return view;
}

PyObject *core_buffer_id(struct enc *E, PyObject *o)
{
    struct core_place at;
    const Py_buffer *view = PyPickleBuffer_GetBuffer(o);
    if (view == NULL)
        return NULL;
    if (E == NULL || !PyBuffer_IsContiguous(view, 'A'))
        Py_RETURN_NONE;
    PyObject *fresh;
    int placed = core_buffer_place(E, view->buf, view->len, view->readonly, &at, &fresh);
    if (placed > 0 && fresh != NULL)
        core_buffer_fill(fresh, view->buf);
    Py_XDECREF(fresh);
    if (placed == 0)
        Py_RETURN_NONE;
    return placed < 0 ? NULL
                      : Py_BuildValue("KnnO", (unsigned long long)at.word, at.start, view->len,
                                      at.readonly ? Py_True : Py_False);
}

PyObject *core_buffer_from_id(PyObject *id, struct core_words *W)
{
    unsigned long long word;
    Py_ssize_t start, n;
    int readonly;
    if (!PyArg_ParseTuple(id, "Knnp", &word, &start, &n, &readonly))
        return NULL;
    return core_buffer_placed(W, (struct core_place){word, start, readonly}, n);
}

/* ---- the module's part ----------------------------------------------------------------------- */

static PyObject *mod_shared_buffer(PyObject *mod, PyObject *args)
{
    CoreProg *prog;
    unsigned long long bytes;
    int zero;
    if (!PyArg_ParseTuple(args, "O!Kp:shared_buffer", &CoreProg_Type, &prog, &bytes, &zero))
        return NULL;
    PyObject *h = buffer_new(prog, HANDLE_SHARED, bytes);
    if (h != NULL && zero) {
        Py_BEGIN_ALLOW_THREADS
            memset(to_write((CoreHandle *)h), 0, bytes);
        Py_END_ALLOW_THREADS
    }
    return h;
}

static PyMethodDef buffer_methods[] = {CORE_HANDLE_REDUCE, {NULL}};
static PyBufferProcs buffer_procs = {buffer_get, NULL};
static PySequenceMethods buffer_sequence = {.sq_length = buffer_len};
#define BUFFER_TYPE(name, doc)                         \
    {                                                  \
        PyVarObject_HEAD_INIT(NULL, 0).tp_name = name, \
        .tp_doc = doc,                                 \
        CORE_HANDLE_SLOTS,                             \
        .tp_as_buffer = &buffer_procs,                 \
        .tp_as_sequence = &buffer_sequence,            \
        .tp_methods = buffer_methods,                  \
    }
static PyTypeObject buffer_types[2] = {
    BUFFER_TYPE("mpgort._core.FrozenBuffer", "Bytes in shared memory, written once."),
    BUFFER_TYPE("mpgort._core.SharedBuffer", "Bytes in shared memory, writable by all."),
};

static PyMethodDef functions[] = {
    {"shared_buffer", mod_shared_buffer, METH_VARARGS,
     "shared_buffer(prog, bytes, zero)\n--\n\nA new SharedBuffer; zero: its bytes are 0."},
    {NULL},
};

int core_buffer_init(PyObject *mod)
{
    for (int i = 0; i < 2; i++) {
        buffer_types[i].tp_dealloc = buffer_dealloc; /* calls that of CORE_HANDLE_SLOTS */
        if (PyType_Ready(&buffer_types[i]) < 0 ||
            core_handle_kind(&buffer_types[i], (uint8_t)(HANDLE_FROZEN + i)) < 0)
            return -1;
    }
    if (PyModule_AddObjectRef(mod, "SharedBuffer", (PyObject *)&Shared_Type) < 0 ||
        PyModule_AddObjectRef(mod, "FrozenBuffer", (PyObject *)&Frozen_Type) < 0)
        return -1;
    return PyModule_AddFunctions(mod, functions);
}
