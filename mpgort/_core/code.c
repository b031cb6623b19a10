/* code.c — the shared table of codes and names, and what this process knows about each entry.
 *
 * A blob names code, functions, classes and global variables by small numbers. The numbers are
 * those of one append-only table, the same in every M (core_codes): content hash -> (number,
 * payload). Payloads are made and read by _code.py; that happens once per code object and process,
 * everything here is a cache in front of it:
 *
 *   code object -> code_info     in the code's co_extra: number, template function, resume points,
 *                                 constants by address, shells. Lives as long as the process: the
 *                                 template keeps the code, as the table keeps the payload.
 *   object -> number              `named`, a hash table by address. It holds no reference, so that
 *                                 reference counts stay what the closed-world check expects;
 *                                 instead each use asks again whether the name still leads to the
 *                                 object: a class may be defined anew, a method be replaced. A
 *                                 module that is reloaded gets another __spec__; what it has is
 *                                 then named anew, with the digests of the code as it is now (also
 *                                 in functions of before, where IPython's autoreload puts it).
 *   number -> code_info or name   `by_id`, the way back.
 *
 * Numbers mean something within one table only. core_codes_changed() makes all cached ones stale by
 * moving codes_epoch on; infos keep what does not depend on the table. */
#include "codec.h"

uint32_t codes_epoch = 1;
Py_ssize_t code_extra_at;

/* ---- number -> what it stands for ------------------------------------------------------------ */

/* Where a name leads: dict[key], and from there by attributes. All strong; rest may be NULL. */
struct place {
    PyObject *dict, *key; /* of a module */
    PyObject *rest;       /* tuple of str: for a name within a class */
};

static struct by_id {
    struct code_info *ci;
    struct place at;
} *by_id;
static uint32_t by_id_cap;

static void place_clear(struct place *at)
{
    Py_CLEAR(at->dict);
    Py_CLEAR(at->key);
    Py_CLEAR(at->rest);
}

/* From what _code.resolve() has answered. False: an exception is set. */
static bool place_set(struct place *at, PyObject *answer, PyObject **found)
{
    PyObject *dict, *key, *rest;
    if (answer == NULL ||
        !PyArg_ParseTuple(answer, "O!UO!O", &PyDict_Type, &dict, &key, &PyTuple_Type, &rest, found))
        return false;
    at->dict = Py_NewRef(dict);
    at->key = Py_NewRef(key);
    PyUnicode_InternInPlace(&at->key);
    at->rest = PyTuple_GET_SIZE(rest) > 0 ? Py_NewRef(rest) : NULL;
    return true;
}

/* What stands there now: a new reference, or NULL without an exception. */
static PyObject *place_get(const struct place *at)
{
    PyObject *o = Py_XNewRef(PyDict_GetItemWithError(at->dict, at->key));
    for (Py_ssize_t i = 0; o != NULL && at->rest != NULL && i < PyTuple_GET_SIZE(at->rest); i++)
        Py_SETREF(o, PyObject_GetAttr(o, PyTuple_GET_ITEM(at->rest, i)));
    if (o == NULL)
        PyErr_Clear();
    return o;
}

static struct by_id *by_id_slot(uint32_t id)
{
    if (id >= by_id_cap) {
        if (id > 1u << 24) /* a number from a damaged blob must not size an array */
            return NULL;
        uint32_t cap = by_id_cap ? by_id_cap : 64;
        while (cap <= id)
            cap *= 2;
        struct by_id *t = PyMem_Realloc(by_id, cap * sizeof *t);
        if (t == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        memset(t + by_id_cap, 0, (cap - by_id_cap) * sizeof *t);
        by_id = t;
        by_id_cap = cap;
    }
    return &by_id[id];
}

void core_codes_changed(void)
{
    codes_epoch++;
    for (uint32_t i = 0; i < by_id_cap; i++) {
        place_clear(&by_id[i].at);
        by_id[i].ci = NULL;
    }
}

/* The payload of an entry as bytes; NULL with BadContinuation if there is no such number. */
static PyObject *payload_bytes(uint32_t id, uint8_t hash[16])
{
    size_t n;
    const void *p = id != 0 && id <= 1u << 24 ? core_codes.payload(id, &n, hash) : NULL;
    if (p == NULL) {
        if (!PyErr_Occurred())
            dec_bad("no code or name has the number %u", id);
        return NULL;
    }
    return PyBytes_FromStringAndSize(p, (Py_ssize_t)n);
}

PyObject *code_payload_tuple(uint32_t id)
{
    uint8_t hash[16];
    PyObject *bytes = payload_bytes(id, hash);
    if (bytes == NULL)
        return NULL;
    PyObject *t = PyObject_CallMethod(core_code_py, "unpack", "O", bytes);
    Py_DECREF(bytes);
    return t;
}

/* ---- code objects ---------------------------------------------------------------------------- */

static void info_free(struct code_info *ci)
{
    Py_XDECREF(ci->func);
    Py_XDECREF(ci->payload);
    Py_XDECREF(ci->spec);
    PyMem_Free(ci->points);
    PyMem_Free(ci->point_at);
    PyMem_Free(ci->how_at);
    PyMem_Free(ci->const_at);
    PyMem_Free(ci);
}

/* Table of the constants by address. Frame slots that hold one are two bytes in the blob, and are
 * the same object after the move. */
static int info_consts(struct code_info *ci)
{
    PyObject *consts = ci->code->co_consts;
    Py_ssize_t n = PyTuple_GET_SIZE(consts);
    uint32_t size = 4;
    while (size < 2 * n)
        size *= 2;
    if (n > 0xfff0)
        n = 0;
    if ((ci->const_at = PyMem_Calloc(size, sizeof *ci->const_at)) == NULL)
        return -1;
    ci->const_mask = size - 1;
    for (Py_ssize_t i = 0; i < n; i++) {
        uint32_t h = (uint32_t)((uintptr_t)PyTuple_GET_ITEM(consts, i) >> 4);
        while (ci->const_at[h & ci->const_mask] != 0)
            h++;
        ci->const_at[h & ci->const_mask] = (uint16_t)(i + 1);
    }
    return 0;
}

static int info_points(struct code_info *ci, PyObject *points)
{
    PyCodeObject *code = ci->code;
    int units = code_units(code);
    Py_ssize_t n = PyList_GET_SIZE(points);
    ci->spec = Py_NewRef(points);
    ci->points = PyMem_Calloc((size_t)n + 1, sizeof *ci->points);
    ci->point_at = PyMem_Malloc(((size_t)units + 1) * sizeof *ci->point_at);
    ci->how_at = PyMem_Calloc((size_t)(code->co_nlocalsplus + code->co_stacksize) + 1, 1);
    if (ci->points == NULL || ci->point_at == NULL || ci->how_at == NULL || n > INT16_MAX)
        return -1;
    memset(ci->point_at, 0xff, ((size_t)units + 1) * sizeof *ci->point_at);
    for (Py_ssize_t i = 0; i < n; i++) {
        struct resume_point *r = &ci->points[i];
        Py_ssize_t n_locals, n_stack;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(points, i), "iiiiy#y#", &r->next, &r->forward,
                              &r->line, &r->how, &r->locals, &n_locals, &r->stack, &n_stack))
            return -1;
        if (n_locals != code->co_nlocalsplus || n_stack > code->co_stacksize || r->next < 0 ||
            r->next >= units || r->forward >= units) {
            PyErr_SetString(PyExc_SystemError, "resume points do not fit the code object");
            return -1;
        }
        r->depth = (uint16_t)n_stack;
        ci->point_at[r->next] = (int16_t)i;
    }
    ci->n_points = (int)n;
    return 0;
}

/* What is remembered of code that does not move: why it does not, as a str in co_extra's place. */
struct no_info {
    struct code_info ci; /* func == NULL */
    char why[160];
};

static struct code_info *info_make(PyCodeObject *code, PyObject *globals)
{
    PyObject *d = PyObject_CallMethod(core_code_py, "describe", "OO", code, globals);
    if (d == NULL)
        return NULL;
    struct code_info *ci = NULL;
    if (PyUnicode_Check(d)) {
        struct no_info *no = PyMem_Calloc(1, sizeof *no);
        if (no != NULL) {
            PyOS_snprintf(no->why, sizeof no->why, "%s", PyUnicode_AsUTF8(d));
            no->ci.globals = globals;
            ci = &no->ci;
        }
    } else if ((ci = PyMem_Calloc(1, sizeof *ci)) != NULL) {
        PyObject *hash = PyTuple_GET_ITEM(d, 0);
        memcpy(ci->hash, PyBytes_AS_STRING(hash), 16);
        ci->payload = Py_NewRef(PyTuple_GET_ITEM(d, 1));
        ci->code = code;
        ci->globals = globals;
        ci->func = (PyFunctionObject *)PyFunction_NewWithQualName((PyObject *)code, globals,
                                                                  code->co_qualname);
        if (ci->func == NULL || info_consts(ci) < 0 ||
            info_points(ci, PyTuple_GET_ITEM(d, 2)) < 0) {
            info_free(ci);
            ci = NULL;
        }
    }
    Py_DECREF(d);
    if (ci == NULL && !PyErr_Occurred())
        PyErr_NoMemory();
    if (ci != NULL && ci->func != NULL && code_set_extra(code, code_extra_at, ci) < 0) {
        info_free(ci);
        return NULL;
    }
    return ci;
}

struct code_info *code_info_of(PyCodeObject *code, PyObject *globals, const char **why)
{
    struct code_info *ci = code_extra(code, code_extra_at);
    static struct no_info *last_no; /* kept for its text only */
    if (ci == NULL) {
        if ((ci = info_make(code, globals)) == NULL)
            return NULL;
        if (ci->func == NULL) {
            /* Not remembered in the code: its module may yet be put into sys.modules. */
            PyMem_Free(last_no);
            last_no = (struct no_info *)ci;
            *why = last_no->why;
            return NULL;
        }
    }
    if (unlikely(ci->globals != globals)) {
        *why = "its code also runs in another module";
        return NULL;
    }
    return ci;
}

uint32_t code_info_intern(struct code_info *ci)
{
    uint32_t epoch = codes_epoch;
    uint32_t id = core_codes.intern(ci->hash, PyBytes_AS_STRING(ci->payload),
                                    (size_t)PyBytes_GET_SIZE(ci->payload));
    if (id == 0)
        return 0;
    ci->id = id;
    ci->epoch = epoch;
    struct by_id *b = by_id_slot(id);
    if (b == NULL)
        return 0;
    b->ci = ci;
    return id;
}

struct code_info *code_info_by_id(uint32_t id)
{
    if (likely(id < by_id_cap) && likely(by_id[id].ci != NULL))
        return by_id[id].ci;
    uint8_t hash[16];
    PyObject *bytes = payload_bytes(id, hash);
    if (bytes == NULL)
        return NULL;
    PyObject *t = PyObject_CallMethod(core_code_py, "locate", "Oy#", bytes, hash, (Py_ssize_t)16);
    Py_DECREF(bytes);
    if (t == NULL)
        return NULL;
    struct code_info *ci = NULL;
    PyObject *code, *globals;
    const char *why = NULL;
    if (PyArg_ParseTuple(t, "O!O!", &PyCode_Type, &code, &PyDict_Type, &globals)) {
        ci = code_info_of((PyCodeObject *)code, globals, &why);
        if (ci == NULL && !PyErr_Occurred())
            PyErr_SetString(core_error("CodeMismatch"), why);
    }
    Py_DECREF(t);
    struct by_id *b = ci != NULL ? by_id_slot(id) : NULL;
    if (b == NULL)
        return NULL;
    b->ci = ci;
    ci->id = id;
    ci->epoch = codes_epoch;
    return ci;
}

/* ---- what the workers know ------------------------------------------------------------------- */

PyObject *codes_known(void)
{
    return core_prog_cur != NULL ? core_prog_cur->known : Py_None;
}

/* Another number after each import; a reload, too, puts the module into sys.modules again. */
static uint64_t modules_version(void)
{
    return dict_version(PyImport_GetModuleDict());
}

/* Of the dict of __main__ in an M0 its version (and that of sys.modules: each only grows), else 0:
 * then nothing can be new in it, nor in a module that it names. */
static uint64_t main_version(PyObject *dict)
{
    if (codes_known() == Py_None)
        return 0;
    PyObject *main = PyImport_AddModule("__main__"); /* borrowed */
    bool is = main != NULL && PyModule_GetDict(main) == dict;
    return is ? dict_version(dict) + modules_version() : 0;
}

int module_is_new(PyObject *module)
{
    static PyObject *last; /* compared only: sys.modules has it */
    static uint64_t last_version, last_known;
    uint64_t version = modules_version();
    if (codes_known() == Py_None ||
        (module == last && version == last_version && core_prog_cur->known_id == last_known))
        return 0;
    PyObject *r = PyObject_CallMethod(codes_known(), "loaded_anew", "O", module);
    if (r == NULL)
        return -1;
    Py_DECREF(r);
    if (r == Py_True)
        return 1;
    last = module;
    last_version = version;
    last_known = core_prog_cur->known_id;
    return 0;
}

int code_by_value(struct code_info *ci)
{
    uint64_t version = main_version(ci->globals);
    if (version == 0 || (ci->version == version && ci->known_id == core_prog_cur->known_id))
        return 0;
    PyObject *r = PyObject_CallMethod(codes_known(), "lacks", "O", ci->code);
    if (r == NULL)
        return -1;
    Py_DECREF(r);
    if (r == Py_True)
        return 1;
    ci->version = version;
    ci->known_id = core_prog_cur->known_id;
    return 0;
}

/* ---- names ----------------------------------------------------------------------------------- */

static struct named {
    PyObject *o; /* compared only */
    struct place at;
    PyObject *spec; /* of the module, as it was then; NULL: it has none */
    uint32_t id, epoch;
    uint64_t version; /* of __main__, where it may be defined anew: main_version() */
    uint64_t seen;    /* of the module's dict, when it was last found to hold */
    bool variable;
} *named;
static uint32_t named_mask, n_named;
static uint32_t n_variables; /* how many entries are variables: mostly none, then nobody looks */

static struct named *named_slot(PyObject *o)
{
    if (named == NULL)
        return NULL;
    for (uint32_t h = hash_address(o);; h++) {
        struct named *n = &named[h & named_mask];
        if (n->o == o || n->o == NULL)
            return n;
    }
}

static int named_grow(void)
{
    uint32_t size = named == NULL ? 64 : (named_mask + 1) * 2;
    struct named *old = named, *t = PyMem_Calloc(size, sizeof *t);
    if (t == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    uint32_t n_old = old == NULL ? 0 : named_mask + 1;
    named = t;
    named_mask = size - 1;
    for (uint32_t i = 0; i < n_old; i++)
        if (old[i].o != NULL)
            *named_slot(old[i].o) = old[i];
    PyMem_Free(old);
    return 0;
}

static PyObject *spec_of(PyObject *dict) /* borrowed, or NULL */
{
    static PyObject *key;
    if (key == NULL && (key = PyUnicode_InternFromString("__spec__")) == NULL)
        PyErr_Clear();
    return key != NULL ? PyDict_GetItemWithError(dict, key) : NULL;
}

/* Still what its module calls by that name, and the module the same? */
static inline bool named_holds(struct named *n)
{
    uint64_t version = dict_version(n->at.dict);
    if (unlikely(n->version != 0) && n->version != version + modules_version())
        return false;
    if (unlikely(n->seen != version)) {
        if (n->spec != spec_of(n->at.dict))
            return false;
        if (n->at.rest == NULL && PyDict_GetItemWithError(n->at.dict, n->at.key) != n->o)
            return false;
        n->seen = version;
    }
    if (likely(n->at.rest == NULL))
        return true;
    PyObject *now = place_get(&n->at);
    Py_XDECREF(now);
    return now == n->o;
}

static uint32_t named_add(PyObject *o, const char *asker, bool variable)
{
    PyObject *t = PyObject_CallMethod(core_code_py, asker, "OO", o, codes_known());
    if (t == NULL || t == Py_None) {
        Py_XDECREF(t);
        return 0;
    }
    uint32_t id = 0;
    const char *hash, *payload;
    Py_ssize_t n_hash, n_payload;
    PyObject *r = NULL;
    struct place at = {NULL, NULL, NULL};
    if (!PyArg_ParseTuple(t, "y#y#", &hash, &n_hash, &payload, &n_payload) ||
        (id = core_codes.intern((const uint8_t *)hash, payload, (size_t)n_payload)) == 0)
        goto done;
    r = PyObject_CallMethod(core_code_py, "resolve", "y#O", payload, n_payload, codes_known());
    PyObject *found;
    if (!place_set(&at, r, &found) || found != o ||
        (2 * ++n_named > named_mask && named_grow() < 0)) {
        place_clear(&at);
        id = 0;
        goto done;
    }
    struct named *n = named_slot(o);
    if (n->o != NULL) { /* it is named anew, or the address had another object before */
        place_clear(&n->at);
        Py_CLEAR(n->spec);
        n_variables -= n->variable;
        n_named--;
    }
    *n = (struct named){.o = o,
                        .at = at,
                        .spec = Py_XNewRef(spec_of(at.dict)),
                        .id = id,
                        .epoch = codes_epoch,
                        .version = main_version(at.dict),
                        .seen = dict_version(at.dict),
                        .variable = variable};
    n_variables += variable;
    struct by_id *b = by_id_slot(id);
    if (b != NULL) { /* the way back leads to the same place, also if the module was made anew */
        place_clear(&b->at);
        b->at = (struct place){Py_NewRef(at.dict), Py_NewRef(at.key), Py_XNewRef(at.rest)};
    } else {
        id = 0;
    }
done:
    Py_DECREF(t);
    Py_XDECREF(r);
    return id;
}

static inline uint32_t named_id(PyObject *o)
{
    struct named *n = named_slot(o);
    if (n == NULL || n->o != o || n->epoch != codes_epoch || !named_holds(n))
        return 0;
    return n->id;
}

uint32_t global_id(PyObject *o)
{
    uint32_t id = named_id(o);
    return likely(id != 0) ? id : named_add(o, "name_of", false);
}

/* Whether some module's dict has o as a value. Most that are asked about have no name: a goroutine
 * that holds a lock asks at each try, so this is a look at some ten thousand pointers and not
 * Python code. */
static bool in_some_module(PyObject *o)
{
    PyObject *modules = PyImport_GetModuleDict(), *module, *value; /* borrowed: nothing runs here */
    Py_ssize_t at = 0;
    while (PyDict_Next(modules, &at, NULL, &module)) {
        PyObject *dict = PyModule_Check(module) ? PyModule_GetDict(module) : NULL;
        Py_ssize_t i = 0;
        while (dict != NULL && PyDict_Next(dict, &i, NULL, &value))
            if (value == o)
                return true;
    }
    return false;
}

uint32_t variable_id(PyObject *o)
{
    uint32_t id = named_id(o);
    return id != 0 ? id : in_some_module(o) ? named_add(o, "variable_of", true) : 0;
}

uint32_t variable_known(PyObject *o)
{
    return n_variables == 0 ? 0 : named_id(o);
}

PyObject *global_by_id(uint32_t id)
{
    struct by_id *b = id < by_id_cap ? &by_id[id] : NULL;
    if (b == NULL || b->at.dict == NULL) {
        uint8_t hash[16];
        PyObject *bytes = payload_bytes(id, hash), *found;
        if (bytes == NULL)
            return NULL;
        PyObject *r = PyObject_CallMethod(core_code_py, "resolve", "OO", bytes, codes_known());
        Py_DECREF(bytes);
        struct place at = {NULL, NULL, NULL};
        bool good = place_set(&at, r, &found) && (b = by_id_slot(id)) != NULL;
        Py_XDECREF(r);
        if (!good) {
            place_clear(&at);
            if (!PyErr_Occurred())
                dec_bad("a number out of range");
            return NULL;
        }
        b->at = at;
    }
    PyObject *o = place_get(&b->at);
    if (o == NULL)
        PyErr_Format(core_error("CodeMismatch"), "%U: its module has nothing under that name now",
                     b->at.key);
    return o;
}

/* ---- for tests ------------------------------------------------------------------------------- */

static PyObject *code_info(PyObject *mod, PyObject *arg)
{
    PyObject *code = PyFunction_Check(arg) ? PyFunction_GET_CODE(arg) : NULL;
    if (code == NULL) {
        PyErr_SetString(PyExc_TypeError, "code_info() takes a function");
        return NULL;
    }
    const char *why = NULL;
    struct code_info *ci = code_info_of((PyCodeObject *)code, PyFunction_GET_GLOBALS(arg), &why);
    if (ci == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, why);
        return NULL;
    }
    uint32_t id = code_info_id(ci);
    if (id == 0)
        return NULL;
    return Py_BuildValue("{s:I,s:y#,s:O,s:i}", "id", id, "hash", ci->hash, (Py_ssize_t)16, "points",
                         ci->spec, "shells", ci->n_shells);
}

static PyMethodDef methods[] = {
    {"code_info", code_info, METH_O, "What is known of a function's code: id, hash, points."},
    {NULL},
};

int core_code_init(PyObject *mod)
{
    if ((core_code_py = PyImport_ImportModule("mpgort._code")) == NULL)
        return -1;
    code_extra_at = code_extra_index(NULL);
    if (code_extra_at < 0 || PyModule_AddFunctions(mod, methods) < 0)
        return -1;
    return core_codes_local_init(mod);
}
