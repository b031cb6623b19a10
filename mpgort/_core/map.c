/* map.c — the two faces of a shared map: sync.Map, which is Go's, and shared.dict, which is
 * Python's.
 *
 * Values cross by value, as over a channel; a large array is a handle in them, so what is got, and
 * set again, is not written again. A key must be the same bytes whenever it is equal, which what
 * the codec writes is not (it notes who shares what): keys are None, numbers, str, bytes and tuples
 * of these, in marshal's oldest form, which has neither references nor interning. Numbers that
 * Python holds for equal (1, True, 1.0) are made one. A dict's keys are str and bytes alone: a
 * number that is a key by mistake (of a row, an id) is told to him who made it.
 *
 * CAS compares as Python does, which takes Python code, and that must not run under the map's lock.
 * So a copy is read and compared, and then replaced only if it still is the same bytes; else once
 * more. */
#include "proc.h"
#include <marshal.h>
#include <math.h>

enum { HANDLE_MAP = 25, HANDLE_DICT = 50 };

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

/* The same for a dict; of a subclass (StrEnum, numpy.str_) the str that it is equal to. */
static PyObject *text(PyObject *key)
{
    if (PyUnicode_Check(key))
        return PyUnicode_FromObject(key);
    if (PyBytes_Check(key))
        return PyBytes_FromStringAndSize(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key));
    PyErr_Format(PyExc_TypeError, "shared.dict: a key is str or bytes, not %.100s: %.200R",
                 Py_TYPE(key)->tp_name, key);
    return NULL;
}

/* Its bytes, a bytes object; NULL: exception. */
static PyObject *key_bytes(CoreHandle *h, PyObject *key)
{
    PyObject *o = h->kind == HANDLE_DICT ? text(key) : canonical(key);
    PyObject *b = o ? PyMarshal_WriteObjectToString(o, 0) : NULL;
    Py_XDECREF(o);
    if (b != NULL && PyBytes_GET_SIZE(b) > UINT32_MAX / 2) {
        PyErr_SetString(PyExc_OverflowError, "a key of more than 2 GB");
        Py_CLEAR(b);
    }
    return b;
}

#define KEY(b) PyBytes_AS_STRING(b), (uint32_t)PyBytes_GET_SIZE(b)

/* What shm_map_load says, with a copy in *v (NULL: it is only asked for); CORE_EXC: exception. */
static int load(CoreHandle *h, PyObject *key, struct shm_val *v)
{
    struct shm_ctx *c = core_ctx(h->prog);
    PyObject *b = c ? key_bytes(h, key) : NULL;
    if (v != NULL)
        v->tag = SHM_VAL_NONE;
    if (b == NULL)
        return CORE_EXC;
    int r = shm_map_load(c, h->off, KEY(b), v);
    Py_DECREF(b);
    if (r == SHM_OK || r == SHM_EAGAIN)
        return r;
    core_shm_error(h->prog, r);
    return CORE_EXC;
}

static PyObject *map_load(CoreHandle *h, PyObject *key)
{
    struct shm_val v;
    int r = load(h, key, &v);
    PyObject *value = r != CORE_EXC ? core_val_take(h->prog, &v) : NULL;
    return value ? Py_BuildValue("NO", value, r == SHM_OK ? Py_True : Py_False) : NULL;
}

/* keep: only if there is none. *was: its value before, or what it has instead. SHM_EAGAIN: there
 * was. */
static int put(CoreHandle *h, PyObject *key, PyObject *value, bool keep, struct shm_val *was)
{
    struct shm_ctx *c = core_ctx(h->prog);
    PyObject *b = c ? key_bytes(h, key) : NULL;
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

/* SHM_OK: *was is its value, the caller's; SHM_EAGAIN: no such key; CORE_EXC: exception. */
static int take_out(CoreHandle *h, PyObject *key, struct shm_val *was)
{
    struct shm_ctx *c = core_ctx(h->prog);
    PyObject *b = c ? key_bytes(h, key) : NULL;
    was->tag = SHM_VAL_NONE;
    if (b == NULL)
        return CORE_EXC;
    int r = shm_map_delete(c, h->off, KEY(b), was);
    Py_DECREF(b);
    return r;
}

static PyObject *map_load_and_delete(CoreHandle *h, PyObject *key)
{
    struct shm_val was;
    int r = take_out(h, key, &was);
    PyObject *value = r != CORE_EXC ? core_val_take(h->prog, &was) : NULL;
    return value ? Py_BuildValue("NO", value, r == SHM_OK ? Py_True : Py_False) : NULL;
}

static PyObject *map_delete(CoreHandle *h, PyObject *key)
{
    struct shm_val was;
    if (take_out(h, key, &was) == CORE_EXC)
        return NULL;
    shm_val_drop(core_ctx(h->prog), &was);
    Py_RETURN_NONE;
}

/* What is read under the lock is bytes; Python objects are made of it afterwards. */
enum what { KEYS = 1, VALUES = 2, ITEMS = KEYS | VALUES };
struct copies {
    struct shm_ctx *c;
    enum what what;
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
    *one = (struct copy){.len = len, .v.tag = SHM_VAL_NONE};
    if (k->what & KEYS) {
        if ((one->key = malloc(len)) == NULL)
            return CORE_EXC;
        memcpy(one->key, key, len);
    }
    int r = k->what & VALUES ? shm_val_copy(k->c, &one->v, v) : SHM_OK;
    if (r < 0)
        free(one->key);
    else
        k->n++;
    return r;
}

static PyObject *copied(CoreHandle *h, enum what what, struct copy *one)
{
    PyObject *key = NULL, *value = NULL, *pair;
    if (what & KEYS && (key = PyMarshal_ReadObjectFromString((char *)one->key, one->len)) == NULL)
        return NULL;
    if (what & VALUES && (value = core_val_take(h->prog, &one->v)) == NULL) {
        Py_XDECREF(key);
        return NULL;
    }
    if (what != ITEMS)
        return key != NULL ? key : value;
    pair = PyTuple_Pack(2, key, value);
    Py_DECREF(key);
    Py_DECREF(value);
    return pair;
}

static PyObject *listed(CoreHandle *h, enum what what)
{
    struct copies k = {.c = core_ctx(h->prog), .what = what};
    if (k.c == NULL)
        return NULL;
    int r = shm_map_each(k.c, h->off, copy_one, &k);
    PyObject *list = r == 0 ? PyList_New(0) : NULL;
    if (r == CORE_EXC)
        PyErr_NoMemory();
    else if (r < 0)
        core_shm_error(h->prog, r);
    for (size_t i = 0; i < k.n; i++) {
        PyObject *one = list != NULL ? copied(h, what, &k.a[i]) : NULL;
        if (list != NULL && (one == NULL || PyList_Append(list, one) < 0))
            Py_CLEAR(list);
        Py_XDECREF(one);
        shm_val_drop(k.c, &k.a[i].v); /* NONE if it was taken */
        free(k.a[i].key);
    }
    free(k.a);
    return list;
}

static PyObject *map_items(CoreHandle *h, PyObject *_)
{
    return listed(h, ITEMS);
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

static PyObject *make(CoreProg *prog, uint8_t kind)
{
    struct shm_ctx *c = prog ? core_ctx(prog) : NULL;
    shm_off off;
    if (c == NULL)
        return NULL;
    int r = shm_map_new(c, &off);
    if (r < 0)
        return core_shm_error(prog, r), NULL;
    return core_handle_wrap(prog, kind, off);
}

static PyObject *map_new(PyTypeObject *t, PyObject *args, PyObject *kw)
{
    if (PyTuple_GET_SIZE(args) > 0 || (kw != NULL && PyDict_GET_SIZE(kw) > 0)) {
        PyErr_SetString(PyExc_TypeError, "Map() takes no arguments");
        return NULL;
    }
    return make(core_current("Map()"), HANDLE_MAP);
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

/* ---- shared.dict ----------------------------------------------------------------------------- */

static PyObject *dict_get(CoreHandle *h, PyObject *const *args, Py_ssize_t n)
{
    struct shm_val v;
    if (n != 1 && n != 2) {
        PyErr_SetString(PyExc_TypeError, "get takes a key and, if you like, a default");
        return NULL;
    }
    int r = load(h, args[0], &v);
    if (r == SHM_EAGAIN)
        return Py_NewRef(n == 2 ? args[1] : Py_None);
    return r == SHM_OK ? core_val_take(h->prog, &v) : NULL;
}

static PyObject *dict_getitem(CoreHandle *h, PyObject *key)
{
    struct shm_val v;
    int r = load(h, key, &v);
    if (r == SHM_EAGAIN)
        PyErr_SetObject(PyExc_KeyError, key);
    return r == SHM_OK ? core_val_take(h->prog, &v) : NULL;
}

static int dict_contains(PyObject *h, PyObject *key)
{
    int r = load((CoreHandle *)h, key, NULL);
    return r == CORE_EXC ? -1 : r == SHM_OK;
}

static PyObject *dict_set(CoreHandle *h, PyObject *const *args, Py_ssize_t n)
{
    if (n != 2) {
        PyErr_SetString(PyExc_TypeError, "set takes a key and a value");
        return NULL;
    }
    return map_store(h, args, n);
}

static PyObject *dict_setdefault(CoreHandle *h, PyObject *const *args, Py_ssize_t n)
{
    struct shm_val was;
    if (n != 2) {
        PyErr_SetString(PyExc_TypeError, "setdefault takes a key and a value");
        return NULL;
    }
    int r = put(h, args[0], args[1], true, &was);
    if (r == CORE_EXC)
        return NULL;
    return r == SHM_OK ? Py_NewRef(args[1]) : core_val_take(h->prog, &was);
}

static PyObject *dict_delete(CoreHandle *h, PyObject *key)
{
    struct shm_val was;
    int r = take_out(h, key, &was);
    if (r == CORE_EXC)
        return NULL;
    shm_val_drop(core_ctx(h->prog), &was);
    return PyBool_FromLong(r == SHM_OK);
}

static int dict_assign(PyObject *o, PyObject *key, PyObject *value)
{
    PyObject *args[] = {key, value};
    PyObject *r = value ? map_store((CoreHandle *)o, args, 2) : dict_delete((CoreHandle *)o, key);
    if (r == Py_False)
        PyErr_SetObject(PyExc_KeyError, key);
    int failed = r == NULL || r == Py_False ? -1 : 0;
    Py_XDECREF(r);
    return failed;
}

static PyObject *dict_pop(CoreHandle *h, PyObject *const *args, Py_ssize_t n)
{
    struct shm_val was;
    if (n != 1 && n != 2) {
        PyErr_SetString(PyExc_TypeError, "pop takes a key and, if you like, a default");
        return NULL;
    }
    int r = take_out(h, args[0], &was);
    if (r == SHM_EAGAIN && n == 2)
        return Py_NewRef(args[1]);
    if (r == SHM_EAGAIN)
        PyErr_SetObject(PyExc_KeyError, args[0]);
    return r == SHM_OK ? core_val_take(h->prog, &was) : NULL;
}

static bool is_array(PyObject *o)
{
    return strcmp(Py_TYPE(o)->tp_name, "numpy.ndarray") == 0;
}

/* a == b; of arrays whether they are equal throughout. */
static int equal(PyObject *a, PyObject *b)
{
    if (!is_array(a) && !is_array(b))
        return PyObject_RichCompareBool(a, b, Py_EQ);
    PyObject *numpy = PyImport_ImportModule("numpy");
    PyObject *r = numpy ? PyObject_CallMethod(numpy, "array_equal", "OO", a, b) : NULL;
    int yes = r ? PyObject_IsTrue(r) : -1;
    Py_XDECREF(numpy);
    Py_XDECREF(r);
    return yes;
}

static PyObject *dict_cas(CoreHandle *h, PyObject *const *args, Py_ssize_t n)
{
    if (n != 3) {
        PyErr_SetString(PyExc_TypeError, "cas takes a key, the value it is to have, and the new");
        return NULL;
    }
    struct shm_ctx *c = core_ctx(h->prog);
    PyObject *b = c ? key_bytes(h, args[0]) : NULL;
    struct shm_val fresh, was, old;
    if (b == NULL || core_val_encode(h->prog, args[2], &fresh) < 0) {
        Py_XDECREF(b);
        return NULL;
    }
    int done = 0, r;
    do {
        r = shm_map_load(c, h->off, KEY(b), &was);
        if (r != SHM_OK)
            break;
        PyObject *value = core_val_peek(h->prog, &was);
        done = value ? equal(value, args[1]) : -1;
        Py_XDECREF(value);
        if (!h->prog->attached) { /* the comparison has ended the runtime: nothing to give back */
            Py_DECREF(b);
            if (done >= 0)
                (void)core_ctx(h->prog); /* says so */
            return NULL;
        }
        if (done > 0 && (r = shm_map_cas(c, h->off, KEY(b), &was, &fresh, &old)) == SHM_OK)
            shm_val_drop(c, &old);
        shm_val_drop(c, &was);
    } while (done > 0 && r == SHM_EAGAIN);
    Py_DECREF(b);
    if (done <= 0 || r != SHM_OK)
        shm_val_drop(c, &fresh);
    if (r != SHM_OK && r != SHM_EAGAIN)
        return core_shm_error(h->prog, r), NULL;
    return done < 0 ? NULL : PyBool_FromLong(done);
}

static PyObject *dict_keys(CoreHandle *h, PyObject *_)
{
    return listed(h, KEYS);
}
static PyObject *dict_values(CoreHandle *h, PyObject *_)
{
    return listed(h, VALUES);
}
static PyObject *dict_iter(PyObject *h)
{
    PyObject *keys = listed((CoreHandle *)h, KEYS), *iter = keys ? PyObject_GetIter(keys) : NULL;
    Py_XDECREF(keys);
    return iter;
}

static PyObject *dict_repr(CoreHandle *h)
{
    if (!h->prog->attached)
        return PyUnicode_FromString("<mpgort.shared.dict of an ended runtime>");
    Py_ssize_t n = map_len((PyObject *)h);
    return n < 0 ? NULL : PyUnicode_FromFormat("<mpgort.shared.dict of %zd>", n);
}

static PyObject *mod_dict_in(PyObject *mod, PyObject *prog)
{
    if (!PyObject_TypeCheck(prog, &CoreProg_Type)) {
        PyErr_SetString(PyExc_TypeError, "dict_in takes a Program");
        return NULL;
    }
    return make((CoreProg *)prog, HANDLE_DICT);
}

PyObject *core_pickled(CoreProg *prog, PyObject *unused)
{
    struct shm_ctx *c = core_ctx(prog);
    shm_off off;
    if (c == NULL)
        return NULL;
    int r = shm_pickled(c, &off);
    if (r < 0)
        return core_shm_error(prog, r), NULL;
    shm_obj_ref_hand(c, off);
    return core_handle_wrap(prog, HANDLE_DICT, off);
}

#define FAST(f) (PyCFunction)(void (*)(void)) f, METH_FASTCALL
static PyMethodDef dict_methods[] = {
    {"get", FAST(dict_get),
     "get($self, key, default=None, /)\n--\n\nIts value, a copy (of a large array a read-only "
     "view), or the default."},
    {"set", FAST(dict_set), "set($self, key, value, /)\n--\n\nAs d[key] = value: by value."},
    {"setdefault", FAST(dict_setdefault),
     "setdefault($self, key, value, /)\n--\n\nIts value, which is set to `value` if there is none: "
     "of all who do so at once one is first."},
    {"cas", FAST(dict_cas),
     "cas($self, key, old, new, /)\n--\n\nSets it to new if its value == old, in one step; whether "
     "it did. (Arrays: if numpy.array_equal.)\n\nFalse for a key that is not there: that is "
     "setdefault()."},
    {"delete", (PyCFunction)dict_delete, METH_O,
     "delete($self, key, /)\n--\n\nIt is gone; whether it was there."},
    {"pop", FAST(dict_pop),
     "pop($self, key, default=..., /)\n--\n\nIts value, and it is gone: nobody else gets it. "
     "Raises KeyError without a default."},
    {"keys", (PyCFunction)dict_keys, METH_NOARGS,
     "keys()\n--\n\nA list: all there are at one moment."},
    {"values", (PyCFunction)dict_values, METH_NOARGS,
     "values()\n--\n\nA list: all there are at one moment."},
    {"items", (PyCFunction)map_items, METH_NOARGS,
     "items()\n--\n\nA list of (key, value): all there are at one moment."},
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyMappingMethods dict_mapping = {map_len, (binaryfunc)dict_getitem, dict_assign};
static PySequenceMethods dict_sequence = {.sq_contains = dict_contains};
static PyTypeObject Dict_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.shared.Dict",
    .tp_doc = "What mpgort.shared.dict() makes: a dict that all goroutines share, by reference.\n\n"
              "Iterating it goes over the keys there were at the start.",
    CORE_HANDLE_SLOTS,
    .tp_as_mapping = &dict_mapping,
    .tp_as_sequence = &dict_sequence,
    .tp_iter = dict_iter,
    .tp_repr = (reprfunc)dict_repr,
    .tp_methods = dict_methods,
};

static PyMethodDef functions[] = {
    {"dict_in", mod_dict_in, METH_O, "dict_in(prog, /)\n--\n\nA new, empty Dict."},
    {NULL},
};

int core_map_init(PyObject *mod)
{
    Map_Type.tp_flags &= ~(unsigned long)Py_TPFLAGS_DISALLOW_INSTANTIATION;
    Map_Type.tp_new = map_new;
    if (PyType_Ready(&Map_Type) < 0 || PyType_Ready(&Dict_Type) < 0 ||
        PyModule_AddFunctions(mod, functions) < 0 ||
        PyModule_AddObjectRef(mod, "Map", (PyObject *)&Map_Type) < 0 ||
        PyModule_AddObjectRef(mod, "Dict", (PyObject *)&Dict_Type) < 0)
        return -1;
    return core_handle_kind(&Map_Type, HANDLE_MAP) < 0 ? -1
                                                       : core_handle_kind(&Dict_Type, HANDLE_DICT);
}
