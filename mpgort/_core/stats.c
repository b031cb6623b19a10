/* stats.c — looking at a Program: slots, counters, the SCHED line, the checker, the layout. For
 * people, the monitor and tests; what is read is about now, not of one instant, unless the program
 * rests. */
#include "prog.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK_S 60 /* a check that takes longer has lost its way */

PyDoc_STRVAR(
    look_doc,
    "look()\n--\n\nFor who watches: the header's figures are those of now. Raises BadSegment "
    "if it is damaged, or was\ncut short since it was mapped: what has been seen of it is "
    "worth nothing.");
static PyObject *prog_look(CoreProg *p, PyObject *noargs)
{
    if (!core_prog_usable(p))
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(slots_doc,
             "slots()\n--\n\nThe M slots in use: list of (slot, kind, pid, goid it runs or 0).");
static PyObject *prog_slots(CoreProg *p, PyObject *noargs)
{
    if (!core_prog_usable(p))
        return NULL;
    struct shm_ctx *c = &p->loop;
    PyObject *list = PyList_New(0);
    uint32_t n = load_acq(&c->hdr->max_m); /* pairs with shm_minit() */
    for (uint32_t i = 0; list != NULL && i < n; i++) {
        struct shm_m *m = &c->mtab[i];
        uint32_t kind = load_acq(&m->kind); /* pairs with minit's CAS */
        if (kind == SHM_M_FREE)
            continue;
        uint64_t g = load_acq(&m->curg); /* a look from outside: the goid may be the next one's */
        uint64_t goid = g != 0 && shm_gidx(g) < c->hdr->max_g ? shm_g(c, g)->goid : 0;
        PyObject *row = Py_BuildValue("IIIK", i, kind, load_acq(&m->pid), (unsigned long long)goid);
        if (row == NULL || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return core_prog_seen(p, list);
}

static int put(PyObject *d, const char *key, unsigned long long v)
{
    PyObject *o = PyLong_FromUnsignedLongLong(v);
    int r = o != NULL ? PyDict_SetItemString(d, key, o) : -1;
    Py_XDECREF(o);
    return r;
}

PyDoc_STRVAR(
    stats_doc,
    "stats()\n--\n\nThe counters summed over all Ms ever, the heap's figures, and under 'ms' a row "
    "per living M.");
static PyObject *prog_stats(CoreProg *p, PyObject *noargs)
{
    struct shm_ctx *c = core_prog_usable(p) ? core_ctx(p) : NULL;
    if (c == NULL)
        return NULL;
    PyObject *d = PyDict_New(), *rows = PyList_New(0);
    uint32_t nm = load_acq(&c->hdr->max_m); /* pairs with shm_minit() */
    if (d == NULL || rows == NULL)
        goto fail;
    /* Each counter has one writer; relaxed: the sums are of about now, not of one instant. */
#define X(name)                                   \
    {                                             \
        unsigned long long sum = 0;               \
        for (uint32_t i = 0; i < nm; i++)         \
            sum += load_rlx(&c->mtab[i].st.name); \
        if (put(d, #name, sum) < 0)               \
            goto fail;                            \
    }
    SHM_COUNTERS(X)
#undef X
    struct shm_heap_stats hs;
    shm_heap_stats(c, &hs);
    if (put(d, "live_blocks", hs.live_blocks) < 0 || put(d, "live_bytes", hs.live_bytes) < 0 ||
        put(d, "live_conts", hs.live_conts) < 0 || put(d, "committed", hs.committed) < 0 ||
        put(d, "large_bytes", hs.large_bytes) < 0 || put(d, "heap_bytes", c->hdr->heap_bytes) < 0 ||
        put(d, "deaths", load_acq(&c->hdr->deaths)) < 0 || /* as above */
        put(d, "replacements", load_acq(&c->hdr->replaced)) < 0 ||
        put(d, "recoveries", load_acq(&c->hdr->reaped)) < 0 ||
        put(d, "recycled", load_acq(&c->hdr->recycled)) < 0 ||
        put(d, "procs", load_rlx(&c->hdr->nprocs)) < 0 ||
        put(d, "wake_cost_ns", c->hdr->wake_cost_ns) < 0)
        goto fail;
    for (uint32_t i = 0; i < nm; i++) {
        struct shm_m *m = &c->mtab[i];
        uint32_t kind = load_acq(&m->kind); /* pairs with minit's CAS */
        if (kind == SHM_M_FREE)
            continue;
        PyObject *row = PyDict_New();
        int bad = row == NULL || put(row, "slot", i) < 0 || put(row, "kind", kind) < 0 ||
                  put(row, "pid", load_acq(&m->pid)) < 0;
#define X(name) bad = bad || put(row, #name, load_rlx(&m->st.name)) < 0; /* as above */
        SHM_COUNTERS(X)
#undef X
        bad = bad || PyList_Append(rows, row) < 0;
        Py_XDECREF(row);
        if (bad)
            goto fail;
    }
    if (PyDict_SetItemString(d, "ms", rows) < 0)
        goto fail;
    Py_DECREF(rows);
    return core_prog_seen(p, d);
fail:
    Py_XDECREF(d);
    Py_XDECREF(rows);
    return NULL;
}

PyDoc_STRVAR(reason_text_doc, "reason_text(reason)\n--\n\nThe text of a wait reason's number.");
static PyObject *prog_reason_text(CoreProg *p, PyObject *o)
{
    struct shm_ctx *c = core_ctx(p);
    unsigned long n = PyLong_AsUnsignedLong(o);
    if (c == NULL || PyErr_Occurred())
        return NULL;
    const char *text = shm_reason_text(c, (unsigned)n);
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
}

PyDoc_STRVAR(schedtrace_doc, "schedtrace()\n--\n\nGo's SCHED line of the program now.");
static PyObject *prog_schedtrace(CoreProg *p, PyObject *noargs)
{
    char buf[8192];
    if (!core_prog_usable(p))
        return NULL;
    return PyUnicode_FromStringAndSize(buf, (Py_ssize_t)shm_schedtrace(&p->loop, buf, sizeof buf));
}

static void collect(void *list, const char *text)
{
    PyObject *s = PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
    if (s == NULL || PyList_Append(list, s) < 0)
        PyErr_Clear();
    Py_XDECREF(s);
}

static void tell(void *out, const char *text)
{
    fputs(text, out);
    fputc('\n', out);
}

/* The checker follows what it finds, and finds another value when it looks again at what somebody
 * changes meanwhile, or what damage has put there. An M's program may rely on it; a monitor is not
 * to go down by it. So there a child does it, and may. -1: exception. */
static int check_apart(struct shm_ctx *c, int quiet, PyObject *list)
{
    int ends[2], status = 0;
    if (pipe(ends) < 0)
        return PyErr_SetFromErrno(PyExc_OSError), -1;
    pid_t pid = fork();
    if (pid == 0) {
        FILE *out = fdopen(ends[1], "w");
        signal(SIGSEGV, SIG_DFL); /* no last words */
        signal(SIGABRT, SIG_DFL);
        signal(SIGALRM, SIG_DFL);
        alarm(CHECK_S);
        if (out != NULL)
            shm_check(c, quiet, tell, out);
        _exit(out == NULL || fclose(out) != 0);
    }
    close(ends[1]);
    FILE *in = pid > 0 ? fdopen(ends[0], "r") : NULL;
    char line[1024];
    while (in != NULL && fgets(line, sizeof line, in) != NULL) {
        line[strcspn(line, "\n")] = 0;
        collect(list, line);
    }
    if (in != NULL)
        fclose(in);
    else
        close(ends[0]);
    if (pid < 0)
        return PyErr_SetFromErrno(PyExc_OSError), -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status == 0 ? 0 : core_bad_segment("what stands in it leads out of it");
}

PyDoc_STRVAR(check_doc,
             "check(quiet)\n--\n\nWalks the segment; a list of texts, one per breach of "
             "an invariant. quiet: the "
             "program has ended, nothing may be left. BadSegment: who watches cannot check one "
             "that is damaged so.");
static PyObject *prog_check(CoreProg *p, PyObject *args)
{
    int quiet;
    if (!PyArg_ParseTuple(args, "p", &quiet) || !core_prog_usable(p))
        return NULL;
    PyObject *list = PyList_New(0);
    if (list != NULL && !p->watches)
        shm_check(&p->loop, quiet, collect, list);
    else if (list != NULL && check_apart(&p->loop, quiet, list) < 0)
        Py_CLEAR(list);
    return list == NULL ? NULL : core_prog_seen(p, list);
}

PyDoc_STRVAR(layout_doc,
             "layout()\n--\n\nThe segment's structs: list of (table, field, dtype, offset, size).");
static PyObject *prog_layout(PyObject *cls, PyObject *noargs)
{
    size_t n;
    const struct shm_field *f = shm_layout(&n);
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list != NULL && i < n; i++) {
        PyObject *row =
            Py_BuildValue("sssII", f[i].table, f[i].field, f[i].dtype, f[i].offset, f[i].size);
        if (row == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, row);
    }
    return list;
}

PyMethodDef core_prog_look[] = {
    PROG_METHOD(look, METH_NOARGS),
    PROG_METHOD(slots, METH_NOARGS),
    PROG_METHOD(stats, METH_NOARGS),
    PROG_METHOD(reason_text, METH_O),
    PROG_METHOD(schedtrace, METH_NOARGS),
    PROG_METHOD(check, METH_VARARGS),
    PROG_METHOD(layout, METH_NOARGS | METH_STATIC),
    {NULL},
};
