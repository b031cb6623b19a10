/* chainframes.c — who waits where: the frames of an encoded chain, read from the bytes alone.
 *
 * A dump shows goroutines whose code this process may not have and must not run, so nothing is
 * rebuilt: the bytes are walked from the root, frame after frame. Only the last slot of a frame
 * leads on (it is what the frame awaits), so the slots before it are skipped, which needs the shape
 * of every tag but none of the values. How many slots a frame has stands in the payload of its
 * code. */
#include "codec.h"

struct walk {
    const uint8_t *p, *end;
    PyObject *frames;
    int depth;
    bool on_chain; /* the value being walked is awaited by the frame before */
};

static int walk_value(struct walk *W);

static int bad(void)
{
    dec_bad("the bytes of a continuation are damaged");
    return -1;
}

static int varint(struct walk *W, uint64_t *v)
{
    uint64_t r = 0;
    for (int shift = 0; shift < 64 && W->p < W->end; shift += 7) {
        uint8_t b = *W->p++;
        r |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80) {
            *v = r;
            return 0;
        }
    }
    return bad();
}

static int skip(struct walk *W, uint64_t n)
{
    if (n > (uint64_t)(W->end - W->p))
        return bad();
    W->p += n;
    return 0;
}

static int values(struct walk *W, uint64_t n)
{
    bool on = W->on_chain;
    W->on_chain = false;
    for (uint64_t i = 0; i < n; i++)
        if (walk_value(W) < 0)
            return -1;
    W->on_chain = on;
    return 0;
}

static int counted(struct walk *W, uint64_t each_bytes, uint64_t each_values)
{
    uint64_t n;
    if (varint(W, &n) < 0)
        return -1;
    if (n > (uint64_t)(W->end - W->p))
        return bad();
    return each_bytes ? skip(W, n * each_bytes) : values(W, n * each_values);
}

static int add_frame(struct walk *W, uint32_t id, uint64_t point, Py_ssize_t *n_slots)
{
    PyObject *t = code_payload_tuple(id);
    if (t == NULL)
        return -1;
    const char *kind, *module;
    PyObject *qualname, *file, *lines, *slots, *body;
    int first, r = -1;
    if (!PyArg_ParseTuple(t, "ssUUiO!O!O", &kind, &module, &qualname, &file, &first, &PyTuple_Type,
                          &lines, &PyTuple_Type, &slots, &body)) {
        PyErr_Clear();
        bad();
    } else if (point >= (uint64_t)PyTuple_GET_SIZE(lines) ||
               point >= (uint64_t)PyTuple_GET_SIZE(slots)) {
        bad();
    } else {
        *n_slots = PyLong_AsSsize_t(PyTuple_GET_ITEM(slots, (Py_ssize_t)point));
        r = 0;
        if (W->on_chain) {
            PyObject *f =
                Py_BuildValue("(OOO)", qualname, file, PyTuple_GET_ITEM(lines, (Py_ssize_t)point));
            r = f != NULL ? PyList_Append(W->frames, f) : -1;
            Py_XDECREF(f);
        }
    }
    Py_DECREF(t);
    return r;
}

static int walk_frame(struct walk *W)
{
    uint64_t id, point;
    Py_ssize_t n = 0;
    if (W->p >= W->end)
        return bad();
    int flags = *W->p++;
    if (flags & 128)
        return values(W, 2);
    if (varint(W, &id) < 0 || varint(W, &point) < 0 || id > UINT32_MAX)
        return PyErr_Occurred() ? -1 : bad();
    if (add_frame(W, (uint32_t)id, point, &n) < 0)
        return -1;
    uint64_t parts = (flags & 8 ? 2 : 0) + (flags & 4 ? 1 : 0) + ((flags & 19) == 16 ? 1 : 0);
    if (values(W, parts) < 0 || values(W, n > 0 ? (uint64_t)n - 1 : 0) < 0)
        return -1;
    return n > 0 ? walk_value(W) : 0;
}

static int walk_exception(struct walk *W)
{
    uint64_t id;
    if (varint(W, &id) < 0 || W->end - W->p < 2)
        return PyErr_Occurred() ? -1 : bad();
    W->p++;
    uint8_t fields = *W->p++;
    return values(W, 6 + (uint64_t)fields);
}

static int walk_traceback(struct walk *W)
{
    uint64_t n, line;
    if (varint(W, &n) < 0)
        return -1;
    for (uint64_t i = 0; i < n; i++)
        if (values(W, 2) < 0 || varint(W, &line) < 0)
            return -1;
    return 0;
}

static int walk_array(struct walk *W)
{
    uint64_t n, v;
    if (skip(W, 2) < 0 || counted(W, 1, 0) < 0 || varint(W, &n) < 0)
        return -1;
    for (uint64_t i = 0; i < n; i++)
        if (varint(W, &v) < 0)
            return -1;
    return counted(W, 1, 0);
}

static int walk_tagged(struct walk *W, int tag)
{
    uint64_t v;
    switch (tag) {
    case TAG_NULL:
    case TAG_NONE:
    case TAG_TRUE:
    case TAG_FALSE:
    case TAG_ELLIPSIS:
    case TAG_NOTIMPLEMENTED:
    case TAG_PARK:
        return 0;
    case TAG_INT16:
        return skip(W, 2);
    case TAG_INT32:
        return skip(W, 4);
    case TAG_INT64:
    case TAG_FLOAT:
        return skip(W, 8);
    case TAG_COMPLEX:
        return skip(W, 16);
    case TAG_HANDLE:
        return skip(W, 9);
    case TAG_REF:
    case TAG_CONST:
    case TAG_PICKLE:
    case TAG_GLOBAL:
        return varint(W, &v);
    case TAG_INTBIG:
    case TAG_STR:
    case TAG_BYTES:
    case TAG_BYTEARRAY:
    case TAG_MODULE:
        return counted(W, 1, 0);
    case TAG_STRW:
        if (W->p >= W->end)
            return bad();
        v = *W->p++;
        return counted(W, v == 2 ? 2 : 4, 0);
    case TAG_TUPLE:
    case TAG_LIST:
    case TAG_SET:
    case TAG_FROZENSET:
        return counted(W, 0, 1);
    case TAG_DICT:
        return counted(W, 0, 2);
    case TAG_SLICE:
    case TAG_RANGE:
        return values(W, 3);
    case TAG_METHOD:
    case TAG_OBJECTD:
        return values(W, 2);
    case TAG_CELL:
        return values(W, 1);
    case TAG_CMETHOD:
        return counted(W, 1, 0) < 0 ? -1 : values(W, 1);
    case TAG_OBJECT:
        return values(W, 1) < 0 ? -1 : counted(W, 0, 2);
    case TAG_CELLOF:
        return varint(W, &v) < 0 ? -1 : varint(W, &v);
    case TAG_DEQUE:
        return values(W, 1) < 0 ? -1 : counted(W, 0, 1);
    case TAG_ARRAY:
        return walk_array(W);
    case TAG_SEQITER:
        return skip(W, 1) < 0 || varint(W, &v) < 0 ? -1 : values(W, 1);
    case TAG_RANGEITER:
        return varint(W, &v) < 0 || varint(W, &v) < 0 ? -1 : varint(W, &v);
    case TAG_DICTITER:
        if (skip(W, 1) < 0 || W->p >= W->end)
            return -1;
        if (*W->p == TAG_NULL)
            return skip(W, 1);
        return values(W, 1) < 0 || varint(W, &v) < 0 ? -1 : varint(W, &v);
    case TAG_REDUCED:
        return skip(W, 1) < 0 ? -1 : values(W, 2);
    case TAG_FUNCTION: {
        if (W->p >= W->end)
            return bad();
        int flags = *W->p++;
        if (varint(W, &v) < 0)
            return -1;
        return values(W, (uint64_t)__builtin_popcount((unsigned)flags) + (flags & 32 ? 1 : 0));
    }
    case TAG_EXC:
        return walk_exception(W);
    case TAG_TRACEBACK:
        return walk_traceback(W);
    case TAG_GEN:
        return walk_frame(W);
    case TAG_ASEND:
    case TAG_ATHROW: /* the generator that is stepped carries the chain on */
        return skip(W, 1) < 0 || walk_value(W) < 0 ? -1 : values(W, 1);
    case TAG_COROWRAP:
        return walk_value(W);
    }
    return bad();
}

static int walk_value(struct walk *W)
{
    if (W->p >= W->end)
        return bad();
    uint8_t tag = *W->p++;
    if (tag >= TAG_SMALL && tag < TAG_MEMO)
        return 0;
    if (++W->depth > DEPTH_MAX + 8)
        return bad();
    int r = walk_tagged(W, tag & ~TAG_MEMO);
    W->depth--;
    return r;
}

PyObject *core_chain_frames(const uint8_t *p, size_t n)
{
    struct walk W = {p + 2, p + n, NULL, 0, true};
    if (n < 3 || p[0] != BLOB_MAGIC_CHAIN) {
        bad();
        return NULL;
    }
    if ((W.frames = PyList_New(0)) == NULL)
        return NULL;
    if (walk_value(&W) < 0)
        Py_CLEAR(W.frames);
    return W.frames;
}
