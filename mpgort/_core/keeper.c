/* keeper.c — what is done to a Program's processes (mpgort/_keeper.py): one round of sysmon, who is
 * to leave, to be killed, to be reaped. Which M is whose child the keeper knows by pid: a worker
 * takes its slot itself, later than it is forked. */
#include "prog.h"

/* Slot + 1 of the worker with this pid, 0: it has none (not yet, or no more). */
static uint32_t slot_of(struct shm_ctx *c, uint32_t pid)
{
    for (uint32_t i = 0; i < load_acq(&c->hdr->max_m); i++) { /* pairs with shm_minit() */
        struct shm_m *m = &c->mtab[i];
        /* Pair with minit's CAS. */
        if (load_acq(&m->kind) == SHM_M_WORKER && load_acq(&m->pid) == pid)
            return i + 1;
    }
    return 0;
}

PyDoc_STRVAR(slot_of_doc, "slot_of(pid)\n--\n\nThe M slot of the worker with this pid, or -1.");
static PyObject *prog_slot_of(CoreProg *p, PyObject *args)
{
    unsigned int pid;
    if (!PyArg_ParseTuple(args, "I", &pid) || !core_prog_usable(p))
        return NULL;
    return PyLong_FromLong((long)slot_of(&p->loop, pid) - 1);
}

PyDoc_STRVAR(
    keeper_wait_doc,
    "keeper_wait(m0_pidfd, children)\n--\n\n"
    "One round of sysmon. children: list of (slot or -1, pid, pidfd). Returns the index of one "
    "that has died, or WAIT_M0_DIED, WAIT_NOTHING, WAIT_SHUTDOWN, WAIT_SPARE, or WAIT_KILL less "
    "the index of one that is to be killed.");
static PyObject *prog_keeper_wait(CoreProg *p, PyObject *args)
{
    int m0, r;
    PyObject *list;
    if (!PyArg_ParseTuple(args, "iO!", &m0, &PyList_Type, &list) || !core_prog_usable(p))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(list);
    struct shm_child *kids = PyMem_New(struct shm_child, (size_t)n + 1);
    if (kids == NULL)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n; i++) {
        int slot;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(list, i), "iii", &slot, &kids[i].pid,
                              &kids[i].pidfd)) {
            PyMem_Free(kids);
            return NULL;
        }
        kids[i].m1 = slot >= 0 ? (uint32_t)slot + 1 : slot_of(&p->loop, (uint32_t)kids[i].pid);
    }
    Py_BEGIN_ALLOW_THREADS
        r = shm_sysmon(&p->loop, m0, kids, (int)n);
    Py_END_ALLOW_THREADS
    PyMem_Free(kids);
    return PyLong_FromLong(r);
}

PyDoc_STRVAR(recycle_doc,
             "recycle(slot, pid)\n--\n\nAsks the worker of that slot, if it is still this "
             "process, to leave: it takes no more\ngoroutines and goes when nothing is at home.");
static PyObject *prog_recycle(CoreProg *p, PyObject *args)
{
    unsigned int slot, pid;
    if (!PyArg_ParseTuple(args, "II", &slot, &pid) || !core_prog_usable(p))
        return NULL;
    struct shm_ctx *c = &p->loop;
    /* It may have gone just now, and its successor be asked: that one leaves as well. */
    if (slot < load_acq(&c->hdr->max_m) && load_acq(&c->mtab[slot].kind) == SHM_M_WORKER &&
        load_acq(&c->mtab[slot].pid) == pid) /* pair with minit's */
        core_prog_notify(c, &c->mtab[slot], SHM_ATTN_RECYCLE);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(kill_again_doc,
             "kill_again(slot)\n--\n\nNew keeper only: what its predecessor was to kill "
             "this M for is looked at anew.");
static PyObject *prog_kill_again(CoreProg *p, PyObject *args)
{
    unsigned int slot;
    if (!PyArg_ParseTuple(args, "I", &slot) || !core_prog_usable(p))
        return NULL;
    if (slot >= load_acq(&p->loop.hdr->max_m)) /* pairs with shm_minit() */
        return PyErr_Format(PyExc_ValueError, "no M slot %u", slot);
    p->loop.mtab[slot].kill_ns = 0; /* the keeper's own word */
    Py_RETURN_NONE;
}

PyDoc_STRVAR(kill_check_doc, "kill_check(slot)\n--\n\nThe process of this M is stopped: is the "
                             "goroutine it is to be killed for there?");
static PyObject *prog_kill_check(CoreProg *p, PyObject *args)
{
    unsigned int slot;
    if (!PyArg_ParseTuple(args, "I", &slot) || !core_prog_usable(p))
        return NULL;
    if (slot >= load_acq(&p->loop.hdr->max_m)) /* pairs with shm_minit() */
        return PyErr_Format(PyExc_ValueError, "no M slot %u", slot);
    return PyBool_FromLong(shm_kill_check(&p->loop, slot + 1));
}

PyDoc_STRVAR(
    reap_doc,
    "reap(slot, wait_status)\n--\n\n"
    "Keeper only: the process of this M slot has ended. Ends the goroutines that were running or "
    "at home there, gives everything else back. True: it had come to its loop.");
static PyObject *prog_reap(CoreProg *p, PyObject *args)
{
    unsigned int slot;
    int status;
    if (!PyArg_ParseTuple(args, "Ii", &slot, &status) || !core_prog_usable(p))
        return NULL;
    struct shm_ctx *c = &p->loop;
    if (slot >= load_acq(&c->hdr->max_m)) /* pairs with shm_minit() */
        return PyErr_Format(PyExc_ValueError, "no M slot %u", slot);
    bool looping =
        load_acq(&c->mtab[slot].looping); /* a dead M's word: nobody writes it any more */
    shm_reap(c, &c->mtab[slot], status);
    return PyBool_FromLong(looping);
}

PyDoc_STRVAR(outside_doc,
             "outside()\n--\n\nKeeper only: how many workers stand without a P in a call that "
             "blocks. Each needs another\nin its place.");
static PyObject *prog_outside(CoreProg *p, PyObject *noargs)
{
    if (!core_prog_usable(p))
        return NULL;
    struct shm_ctx *c = &p->loop;
    uint32_t n = load_acq(&c->hdr->max_m), outside = 0; /* pairs with shm_minit() */
    for (uint32_t i = 0; i < n; i++) {
        struct shm_m *m = &c->mtab[i];
        /* A look: one that is just about to take a P is counted, and then there is one to leave.
         * Who waits outside calls itself idle (block.c), but has no bit: nobody is to wake it. */
        bool listed = load_rlx(&c->hdr->idle_m[i / 64]) >> i % 64 & 1;
        outside += load_rlx(&m->kind) == SHM_M_WORKER && load_rlx(&m->looping) &&
                   load_rlx(&m->p1) == 0 && load_rlx(&m->spinning) != SHM_M_SPINNING && !listed;
    }
    return PyLong_FromUnsignedLong(outside);
}

PyDoc_STRVAR(replaced_doc, "replaced()\n--\n\nKeeper only: counts a worker that takes another's "
                           "place.");
static PyObject *prog_replaced(CoreProg *p, PyObject *noargs)
{
    if (!core_prog_usable(p))
        return NULL;
    add_acqrel(&p->loop.hdr->replaced, 1); /* read by anybody: about now */
    Py_RETURN_NONE;
}

PyMethodDef core_prog_keeper[] = {
    PROG_METHOD(slot_of, METH_VARARGS),
    PROG_METHOD(keeper_wait, METH_VARARGS),
    PROG_METHOD(recycle, METH_VARARGS),
    PROG_METHOD(kill_check, METH_VARARGS),
    PROG_METHOD(kill_again, METH_VARARGS),
    PROG_METHOD(reap, METH_VARARGS),
    PROG_METHOD(replaced, METH_NOARGS),
    PROG_METHOD(outside, METH_NOARGS),
    {NULL},
};
