/* map.c — the face of a shared map: sync.Map.
 *
 * Values cross by value, as over a channel. A key must be the same bytes whenever it is equal, which what
 * the codec writes is not (it notes who shares what): keys are None, numbers, str, bytes and tuples of
 * these, in marshal's oldest form, which has neither references nor interning. Numbers that Python
 * holds for equal (1, True, 1.0) are made one. */
#include "proc.h"
#include <marshal.h>
#include <math.h>

enum { HANDLE_MAP = 25 };

/* The canonical object equal to key, or NULL with TypeError. */
static PyObject *canonical(PyObject *key)
{
    if (key == Py_None || PyLong_CheckExact(key) || PyUnicode_CheckExact(key) ||
        PyBytes_CheckExact(key))
        return Py_NewRef(key);
    if (PyBool_Check(key))
        return PyLong_FromLong(key == Py_True);
    if (PyFloat_CheckExact(key)) {
        double d = PyFloat_AS_DOUBLE(key);
        return isfinite(d) && d == floor(d) ? PyLong_FromDouble(d) : Py_NewRef(key);
    }
    if (!PyTuple_CheckExact(key)) {
        PyErr_Format(
            PyExc_TypeError,
            "sync.Map: a key is None, a number, str, bytes or a tuple of these, not %.100s",
            Py_TYPE(key)->tp_name);
        return NULL;
    }
    PyObject *t = PyTuple_New(PyTuple_GET_SIZE(key));
    for (Py_ssize_t i = 0; t != NULL && i < PyTuple_GET_SIZE(key); i++) {
        PyObject *item = canonical(PyTuple_GET_ITEM(key, i));
        if (item == NULL)
            Py_CLEAR(t);
        else
            PyTuple_SET_ITEM(t, i, item);
    }
    return t;
}

/* Its bytes, a bytes object; NULL: exception. */
static PyObject *key_bytes(PyObject *key)
{
    PyObject *o = canonical(key);
    PyObject *b = o ? PyMarshal_WriteObjectToString(o, 0) : NULL;
    Py_XDECREF(o);
    if (b != NULL && PyBytes_GET_SIZE(b) > UINT32_MAX / 2) {
        PyErr_SetString(PyExc_OverflowError, "sync.Map: a key of more than 2 GB");
        Py_CLEAR(b);
    }
    return b;
}

#define KEY(b) PyBytes_AS_STRING(b), (uint32_t)PyBytes_GET_SIZE(b)

static PyObject *map_load(CoreHandle *h, PyObject *key)
{
    struct shm_ctx *c = core_ctx(h->prog);
    PyObject *b = c ? key_bytes(key) : NULL;
    struct shm_val v = {.tag = SHM_VAL_NONE};
    if (b == NULL)
        return NULL;
    int r = shm_map_load(c, h->off, KEY(b), &v);
    Py_DECREF(b);
    if (r != SHM_OK && r != SHM_EAGAIN)
        return core_shm_error(h->prog, r), NULL;
    PyObject *value = core_val_take(h->prog, &v);
    return value ? Py_BuildValue("NO", value, r == SHM_OK ? Py_True : Py_False) : NULL;
}

/* keep: only if there is none. *was: its value before, or what it has instead. SHM_EAGAIN: there was. */
static int put(CoreHandle *h, PyObject *key, PyObject *value, bool keep, struct shm_val *was)
{
    struct shm_ctx *c = core_ctx(h->prog);
    PyObject *b = c ? key_bytes(key) : NULL;
    struct shm_val v;
    was->tag = SHM_VAL_NONE;
    if (b == NULL)
        return CORE_EXC;
    if (core_val_encode(h->prog, value, &v) < 0) {
        Py_DECREF(b);
        return CORE_EXC;
    }
    int r = shm_map_store(c, h->off, KEY(b), &v, keep, was);
    Py_DECREF(b);
    if (r < 0 && (keep || r != SHM_EAGAIN))
        shm_val_drop(c, &v);
    if (r != SHM_OK && r != SHM_EAGAIN) {
        core_shm_error(h->prog, r);
        return CORE_EXC;
    }
    return r;
}

static PyObject *map_store(CoreHandle *h, PyObject *const *args, Py_ssize_t n)
{
    struct shm_val was;
    if (n != 2) {
        PyErr_SetString(PyExc_TypeError, "store takes a key and a value");
        return NULL;
    }
    if (put(h, args[0], args[1], false, &was) == CORE_EXC)
        return NULL;
    shm_val_drop(core_ctx(h->prog), &was);
    Py_RETURN_NONE;
}

static PyObject *map_load_or_store(CoreHandle *h, PyObject *const *args, Py_ssize_t n)
{
    struct shm_val was;
    if (n != 2) {
        PyErr_SetString(PyExc_TypeError, "load_or_store takes a key and a value");
        return NULL;
    }
    int r = put(h, args[0], args[1], true, &was);
    if (r == CORE_EXC)
        return NULL;
    if (r == SHM_OK)
        return Py_BuildValue("OO", args[1], Py_False);
    PyObject *value = core_val_take(h->prog, &was);
    return value ? Py_BuildValue("NO", value, Py_True) : NULL;
}

static PyObject *map_load_and_delete(CoreHandle *h, PyObject *key)
{
    struct shm_ctx *c = core_ctx(h->prog);
    PyObject *b = c ? key_bytes(key) : NULL;
    struct shm_val was = {.tag = SHM_VAL_NONE};
    if (b == NULL)
        return NULL;
    int r = shm_map_delete(c, h->off, KEY(b), &was);
    Py_DECREF(b);
    PyObject *value = core_val_take(h->prog, &was);
    return value ? Py_BuildValue("NO", value, r == SHM_OK ? Py_True : Py_False) : NULL;
}

static PyObject *map_delete(CoreHandle *h, PyObject *key)
{
    PyObject *pair = map_load_and_delete(h, key);
    if (pair == NULL)
        return NULL;
    Py_DECREF(pair);
    Py_RETURN_NONE;
}

/* What is read under the lock is bytes; Python objects are made of it afterwards. */
struct copies {
    struct shm_ctx *c;
    struct copy {
        uint8_t *key;
        uint32_t len;
        struct shm_val v;
    } *a;
    size_t n, cap;
};

static int copy_one(void *arg, const uint8_t *key, uint32_t len, const struct shm_val *v)
{
    struct copies *k = arg;
    if (k->n == k->cap) {
        size_t cap = k->cap ? 2 * k->cap : 64;
        struct copy *a = realloc(k->a, cap * sizeof *a);
        if (a == NULL)
            return CORE_EXC;
        k->a = a;
        k->cap = cap;
    }
    struct copy *one = &k->a[k->n];
    if ((one->key = malloc(len)) == NULL)
        return CORE_EXC;
    memcpy(one->key, key, len);
    one->len = len;
    int r = shm_val_copy(k->c, &one->v, v);
    if (r < 0)
        free(one->key);
    else
        k->n++;
    return r;
}

static PyObject *map_items(CoreHandle *h, PyObject *_)
{
    struct copies k = {.c = core_ctx(h->prog)};
    if (k.c == NULL)
        return NULL;
    int r = shm_map_each(k.c, h->off, copy_one, &k);
    PyObject *list = r == 0 ? PyList_New(0) : NULL;
    if (r == CORE_EXC)
        PyErr_NoMemory();
    else if (r < 0)
        core_shm_error(h->prog, r);
    for (size_t i = 0; i < k.n; i++) {
        struct copy *one = &k.a[i];
        PyObject *key = NULL, *value = NULL, *pair = NULL;
        if (list != NULL &&
            (key = PyMarshal_ReadObjectFromString((char *)one->key, one->len)) != NULL &&
            (value = core_val_take(h->prog, &one->v)) != NULL)
            pair = PyTuple_Pack(2, key, value);
        if (list != NULL && (pair == NULL || PyList_Append(list, pair) < 0))
            Py_CLEAR(list);
        Py_XDECREF(key);
        Py_XDECREF(value);
        Py_XDECREF(pair);
        shm_val_drop(k.c, &one->v); /* NONE if it was taken */
        free(one->key);
    }
    free(k.a);
    return list;
}

static Py_ssize_t map_len(PyObject *o)
{
    CoreHandle *h = (CoreHandle *)o;
    struct shm_ctx *c = core_ctx(h->prog);
    return c ? (Py_ssize_t)((struct shm_map *)shm_at(c, h->off))->n : -1; /* a glance */
}

static int map_bool(PyObject *o)
{
    return 1;
} /* though len() may be 0 */

static PyObject *map_new(PyTypeObject *t, PyObject *args, PyObject *kw)
{
    if (PyTuple_GET_SIZE(args) > 0 || (kw != NULL && PyDict_GET_SIZE(kw) > 0)) {
        PyErr_SetString(PyExc_TypeError, "Map() takes no arguments");
        return NULL;
    }
    CoreProg *prog = core_current("Map()");
    struct shm_ctx *c = prog ? core_ctx(prog) : NULL;
    shm_off off;
    if (c == NULL)
        return NULL;
    int r = shm_map_new(c, &off);
    if (r < 0)
        return core_shm_error(prog, r), NULL;
    return core_handle_wrap(prog, HANDLE_MAP, off);
}

static PyMethodDef map_methods[] = {
    {"load", (PyCFunction)map_load, METH_O,
     "load($self, key, /)\n--\n\n(value, True), or (None, False) if it has no such key. Source: Go "
     "sync.Map."},
    {"store", (PyCFunction)(void (*)(void))map_store, METH_FASTCALL,
     "store($self, key, value, /)\n--\n\nSets it, by value."},
    {"load_or_store", (PyCFunction)(void (*)(void))map_load_or_store, METH_FASTCALL,
     "load_or_store($self, key, value, /)\n--\n\n(its value, True), or sets it: (value, False)."},
    {"load_and_delete", (PyCFunction)map_load_and_delete, METH_O,
     "load_and_delete($self, key, /)\n--\n\n(value, True) and it is gone, or (None, False)."},
    {"delete", (PyCFunction)map_delete, METH_O,
     "delete($self, key, /)\n--\n\nIt is gone, if it was."},
    {"items", (PyCFunction)map_items, METH_NOARGS,
     "items()\n--\n\nA list of (key, value): all there is at one moment (Go's Range promises "
     "less)."},
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PySequenceMethods map_sequence = {.sq_length = map_len};
static PyNumberMethods map_number = {.nb_bool = map_bool};
static PyTypeObject Map_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.sync.Map",
    .tp_doc =
        "Map()\n--\n\nA map that all goroutines share. Keys: None, numbers, str, bytes, tuples "
        "of these.\n\nSource: Go sync.Map.",
    CORE_HANDLE_SLOTS,
    .tp_as_sequence = &map_sequence,
    .tp_as_number = &map_number,
    .tp_methods = map_methods,
};

int core_map_init(PyObject *mod)
{
    Map_Type.tp_flags &= ~(unsigned long)Py_TPFLAGS_DISALLOW_INSTANTIATION;
    Map_Type.tp_new = map_new;
    if (PyType_Ready(&Map_Type) < 0 || PyModule_AddObjectRef(mod, "Map", (PyObject *)&Map_Type) < 0)
        return -1;
    return core_handle_kind(&Map_Type, HANDLE_MAP);
}
