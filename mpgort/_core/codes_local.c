/* codes_local.c — the table of codes and names of a process that is in no program.
 *
 * It is what core_codes is before a segment is attached: for values and frames that are encoded and
 * decoded within this process, and for tests, which take it from one process to another by
 * codes_dump() and codes_load(). A program's table is shm/code.c. */
#include "codec.h"

static struct local_entry {
    uint8_t hash[16];
    PyObject *payload;
} *local;
static uint32_t n_local, local_cap;
static PyObject *local_ids; /* hash bytes -> id */

static uint32_t local_intern(const uint8_t hash[16], const void *payload, size_t n)
{
    PyObject *key = PyBytes_FromStringAndSize((const char *)hash, 16);
    if (key == NULL || (local_ids == NULL && (local_ids = PyDict_New()) == NULL)) {
        Py_XDECREF(key);
        return 0;
    }
    PyObject *id = PyDict_GetItemWithError(local_ids, key);
    if (id != NULL || PyErr_Occurred()) {
        Py_DECREF(key);
        return id != NULL ? (uint32_t)PyLong_AsUnsignedLong(id) : 0;
    }
    if (n_local == local_cap) {
        uint32_t cap = local_cap ? local_cap * 2 : 64;
        struct local_entry *t = PyMem_Realloc(local, cap * sizeof *t);
        if (t == NULL)
            goto fail;
        local = t;
        local_cap = cap;
    }
    PyObject *bytes = PyBytes_FromStringAndSize(payload, (Py_ssize_t)n);
    id = bytes != NULL ? PyLong_FromUnsignedLong(n_local + 1) : NULL;
    if (id == NULL || PyDict_SetItem(local_ids, key, id) < 0) {
        Py_XDECREF(bytes);
        Py_XDECREF(id);
        goto fail;
    }
    Py_DECREF(id);
    Py_DECREF(key);
    memcpy(local[n_local].hash, hash, 16);
    local[n_local].payload = bytes;
    return ++n_local;
fail:
    Py_DECREF(key);
    if (!PyErr_Occurred())
        PyErr_NoMemory();
    return 0;
}

static const void *local_payload(uint32_t id, size_t *n, uint8_t hash[16])
{
    if (id == 0 || id > n_local)
        return NULL;
    memcpy(hash, local[id - 1].hash, 16);
    *n = (size_t)PyBytes_GET_SIZE(local[id - 1].payload);
    return PyBytes_AS_STRING(local[id - 1].payload);
}

struct core_codes core_codes = {local_intern, local_payload};

static PyObject *codes_dump(PyObject *mod, PyObject *none)
{
    PyObject *all = PyList_New(0);
    for (uint32_t i = 0; all != NULL && i < n_local; i++) {
        PyObject *pair = Py_BuildValue("(y#O)", local[i].hash, (Py_ssize_t)16, local[i].payload);
        if (pair == NULL || PyList_Append(all, pair) < 0)
            Py_CLEAR(all);
        Py_XDECREF(pair);
    }
    PyObject *bytes = all != NULL ? PyObject_CallMethod(core_code_py, "pack", "O", all) : NULL;
    Py_XDECREF(all);
    return bytes;
}

static PyObject *codes_load(PyObject *mod, PyObject *bytes)
{
    PyObject *all = PyObject_CallMethod(core_code_py, "unpack", "O", bytes);
    if (all == NULL)
        return NULL;
    for (uint32_t i = 0; i < n_local; i++)
        Py_DECREF(local[i].payload);
    n_local = 0;
    if (local_ids != NULL)
        PyDict_Clear(local_ids);
    core_codes_changed();
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(all); i++) {
        const char *hash, *payload;
        Py_ssize_t n_hash, n_payload;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(all, i), "y#y#", &hash, &n_hash, &payload,
                              &n_payload) ||
            local_intern((const uint8_t *)hash, payload, (size_t)n_payload) == 0) {
            Py_DECREF(all);
            return NULL;
        }
    }
    Py_DECREF(all);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"codes_dump", codes_dump, METH_NOARGS, "The process-local table of codes and names as bytes."},
    {"codes_load", codes_load, METH_O, "Replaces the process-local table by a dumped one."},
    {NULL},
};

int core_codes_local_init(PyObject *mod)
{
    return PyModule_AddFunctions(mod, methods);
}
