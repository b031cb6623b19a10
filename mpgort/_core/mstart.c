/* mstart.c — how this process comes to be an M of a Program and ceases to be one, and what M0 does
 * to end the program.
 *
 * An M has a slot from minit() to mexit() and a loop in between: run_main() in M0, work() in a
 * worker. The keeper has a slot and no loop here.
 *
 * THE END, M0's. shutdown() says so to all, and each M leaves its loop at its next look; forget()
 * drops what was at home here. drain_wait() is how M0 knows that there is nothing left to wait for:
 * the question of a deadlock, asked while nobody outside is counted (hold()). */
#include "prog.h"
#include <unistd.h>

/* ---- an M's life ----------------------------------------------------------------------------- */

PyDoc_STRVAR(
    minit_doc,
    "minit(kind)\n--\n\nTakes an M slot (M_M0, M_WORKER, M_KEEPER) for this process's loop.");
static PyObject *prog_minit(CoreProg *p, PyObject *args)
{
    unsigned int kind;
    if (!PyArg_ParseTuple(args, "I", &kind) || !core_prog_usable(p))
        return NULL;
    int r = shm_minit(&p->loop, kind);
    if (r < 0) {
        core_shm_error(p, r);
        return NULL;
    }
    if (kind == SHM_M_WORKER) {
        core_failpoint_arm();
        core_fault_arm(p->loop.m);
    }
    return PyLong_FromUnsignedLong(p->loop.m->index);
}

PyDoc_STRVAR(mexit_doc, "mexit()\n--\n\nGives this process's slots back.");
static PyObject *prog_mexit(CoreProg *p, PyObject *noargs)
{
    if (!core_prog_usable(p))
        return NULL;
    core_proc_free(p);
    if (p->aux_on)
        shm_mexit(&p->aux);
    p->aux_on = false;
    if (p->loop.m != NULL) {
        core_fault_disarm();
        if (p->loop.p != NULL)
            shm_releasep(&p->loop);
        shm_mexit(&p->loop);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_kick_fd_doc,
             "set_kick_fd(fd)\n--\n\nThe keeper's eventfd: written to when it must look up.");
static PyObject *prog_set_kick_fd(CoreProg *p, PyObject *args)
{
    int fd;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    p->loop.kick_fd = p->aux.kick_fd = fd;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(calibrate_doc,
             "calibrate()\n--\n\nSays how long Ms spin on this machine. Once, before any loop.");
static PyObject *prog_calibrate(CoreProg *p, PyObject *noargs)
{
    if (!core_prog_usable(p))
        return NULL;
    shm_calibrate(&p->loop);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(work_doc,
             "work()\n--\n\nRuns goroutines until the program ends or this worker retires.");
static PyObject *prog_work(CoreProg *p, PyObject *noargs)
{
    if (!core_prog_usable(p))
        return NULL;
    store_rel(&p->loop.m->looping, 1); /* own word, read by the keeper after a death */
    if (core_m_loop(p) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(run_main_doc,
             "run_main(fn, args, kwargs)\n--\n\nRuns fn(*args, **kwargs) as goroutine 1 here.");
static PyObject *prog_run_main(CoreProg *p, PyObject *args)
{
    PyObject *fn, *a, *kw;
    if (!PyArg_ParseTuple(args, "OO!O!", &fn, &PyTuple_Type, &a, &PyDict_Type, &kw) ||
        !core_prog_usable(p))
        return NULL;
    return core_main_loop(p, fn, a, kw);
}

/* ---- the end of a program -------------------------------------------------------------------- */

void core_prog_notify(struct shm_ctx *c, struct shm_m *m, uint32_t attn)
{
    or_seq(&m->attn, attn); /* before the note: who wakes by it, or is about to sleep, sees it */
    shm_notewakeup(&m->note);
}

PyDoc_STRVAR(shutdown_doc,
             "shutdown()\n--\n\nEnds the program: every M leaves its loop at its next look.");
static PyObject *prog_shutdown(CoreProg *p, PyObject *noargs)
{
    if (!core_prog_usable(p))
        return NULL;
    struct shm_ctx *c = &p->loop;
    store_rel(&c->hdr->shutdown, 1); /* pairs with the load_acq in attend(), findrunnable, sysmon */
    for (uint32_t i = 0; i < load_acq(&c->hdr->max_m); i++) /* pairs with shm_minit() */
        if (load_acq(&c->mtab[i].kind) != SHM_M_FREE)       /* pairs with minit's CAS */
            core_prog_notify(c, &c->mtab[i], SHM_ATTN_SHUTDOWN);
    if (c->kick_fd >= 0) {
        uint64_t one = 1;
        ssize_t n = write(c->kick_fd, &one, sizeof one);
        (void)n; /* full: it is awake anyhow */
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    forget_doc,
    "forget()\n--\n\nDrops the goroutines that the program's end found at home in this process.");
static PyObject *prog_forget(CoreProg *p, PyObject *noargs)
{
    if (p->loop_thread == 0)
        core_proc_free(p);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    drain_wait_doc,
    "drain_wait(seconds)\n--\n\n"
    "True when no goroutine runs or can run again and no timer is pending, nobody from outside "
    "being counted; False if that takes longer. M0 only, while no loop runs in it.");
static PyObject *prog_drain_wait(CoreProg *p, PyObject *args)
{
    double seconds;
    if (!PyArg_ParseTuple(args, "d", &seconds) || !core_prog_usable(p))
        return NULL;
    struct shm_ctx *c = &p->loop;
    /* Clear, look, sleep: the last M that falls asleep after our look sets the note. */
    shm_noteclear(&c->m->note);
    if (shm_checkdead(c))
        Py_RETURN_TRUE;
    Py_BEGIN_ALLOW_THREADS
        shm_notetsleep(&c->m->note, (int64_t)(seconds * 1e9));
    Py_END_ALLOW_THREADS
    and_seq(&c->m->attn, ~(uint32_t)SHM_ATTN_CHECKDEAD); /* before the look that answers it */
    return PyBool_FromLong(shm_checkdead(c));
}

PyDoc_STRVAR(
    hold_doc,
    "hold(n)\n--\n\nAdds n to the outside wakers that keep a program without work from being "
    "taken for a deadlock.");
static PyObject *prog_hold(CoreProg *p, PyObject *args)
{
    int n;
    if (!PyArg_ParseTuple(args, "i", &n) || !core_prog_usable(p))
        return NULL;
    add_acqrel(&p->loop.hdr->externs, (uint32_t)n); /* pairs with the load in shm_checkdead */
    Py_RETURN_NONE;
}

PyDoc_STRVAR(promise_procs_doc,
             "promise_procs()\n--\n\nNo more than procs goroutines run at once from "
             "here on, though they stand in calls that block.");
static PyObject *prog_promise_procs(CoreProg *p, PyObject *_)
{
    if (!core_prog_usable(p))
        return NULL;
    shm_procs_promise(&p->loop);
    Py_RETURN_NONE;
}

PyMethodDef core_prog_mstart[] = {
    PROG_METHOD(minit, METH_VARARGS),        PROG_METHOD(mexit, METH_NOARGS),
    PROG_METHOD(set_kick_fd, METH_VARARGS),  PROG_METHOD(calibrate, METH_NOARGS),
    PROG_METHOD(work, METH_NOARGS),          PROG_METHOD(run_main, METH_VARARGS),
    PROG_METHOD(shutdown, METH_NOARGS),      PROG_METHOD(forget, METH_NOARGS),
    PROG_METHOD(drain_wait, METH_VARARGS),   PROG_METHOD(hold, METH_VARARGS),
    PROG_METHOD(promise_procs, METH_NOARGS), {NULL},
};
