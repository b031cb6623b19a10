/* value.c — Python values <-> struct shm_val: the codec, told which program it works for.
 *
 * The codec (codec.c) names code objects and handles in terms of one program; a thread may take
 * part in several (M0 with two Runtimes), so each use enters the program first. */
#include "proc.h"

/* Encoding and decoding name codes and handles in terms of one program. */
struct core_entered core_enter(CoreProg *prog)
{
    struct core_entered e = {core_prog_cur};
    if (core_prog_cur != prog) {
        core_prog_cur = prog;
        core_codes_changed();
    }
    return e;
}
void core_leave(struct core_entered e)
{
    if (core_prog_cur != e.was) {
        core_prog_cur = e.was;
        core_codes_changed();
    }
}

/* The program's sink for values, or a fresh one while it is in use: a reducer may itself send. */
struct core_enc *core_venc_take(struct core_proc *s, struct core_enc *spare)
{
    struct core_enc *e = &s->venc;
    if (s->venc_busy) {
        if (core_enc_init(spare) < 0)
            return PyErr_NoMemory(), NULL;
        e = spare;
    } else {
        s->venc_busy = true;
    }
    core_enc_reset(e);
    e->budget = SIZE_MAX;
    return e;
}
void core_venc_give(struct core_proc *s, struct core_enc *e)
{
    if (e == &s->venc)
        s->venc_busy = false;
    else
        core_enc_free(e);
}

static int value_store(CoreProg *prog, struct shm_ctx *c, struct core_enc *e, struct shm_val *val)
{
    size_t n = (size_t)(e->p - e->base);
    int r = n > UINT32_MAX ? SHM_ENOMEM : shm_val_make(c, val, e->base, (uint32_t)n, e->h, e->nh);
    core_enc_let(e, 0);
    return r < 0 ? core_shm_error(prog, r) : 0;
}

static int encode_with(int (*encode)(PyObject *, struct core_enc *), CoreProg *prog, PyObject *o,
                       struct shm_val *val)
{
    struct core_proc *s = core_proc_get(prog);
    struct shm_ctx *c = core_ctx(prog);
    struct core_enc spare, *e;
    if (s == NULL || c == NULL || (e = core_venc_take(s, &spare)) == NULL)
        return -1;
    struct core_entered was = core_enter(prog);
    int r = encode(o, e);
    if (r == ENC_OK)
        r = value_store(prog, c, e, val);
    core_leave(was);
    core_venc_give(s, e);
    return r == 0 ? 0 : -1;
}

int core_val_encode(CoreProg *prog, PyObject *v, struct shm_val *val)
{
    if ((val->tag = (uint8_t)core_value_encode_small(v, val->b, sizeof val->b)) != 0)
        return 0;
    return encode_with(core_value_encode, prog, v, val);
}

int core_exc_store(CoreProg *prog, PyObject *exc, struct shm_val *val)
{
    return encode_with(core_exc_encode, prog, exc, val);
}

typedef PyObject *(*decoder)(const uint8_t *p, size_t n, struct core_words *W);

/* Decodes a value where it stands; what it holds goes on holding it. */
static PyObject *val_decode(CoreProg *prog, struct shm_ctx *c, const struct shm_val *val,
                            decoder decode)
{
    uint32_t n, nh = 0;
    const uint8_t *p = shm_val_bytes(c, val, &n);
    const uint64_t *h = val->tag == SHM_VAL_HEAP ? shm_bytes_handles(c, val->h.off, &nh) : NULL;
    struct core_words W;
    PyObject *v = NULL;
    struct core_entered was = core_enter(prog);
    if (core_words_open(&W, h, nh) == 0) {
        v = decode(p, n, &W);
        core_words_close(&W);
    }
    core_leave(was);
    return v;
}

/* *v: the value, or NULL with an exception set, of one that lies within 16 bytes. False: it does
 * not. */
static bool val_small(const struct shm_val *val, PyObject **v)
{
    *v = NULL;
    if (val->tag == SHM_VAL_NONE)
        *v = Py_NewRef(Py_None);
    else if (val->tag <= sizeof val->b)
        *v = core_value_decode_small(val->b, val->tag);
    return *v != NULL || PyErr_Occurred();
}

PyObject *core_val_take(CoreProg *prog, struct shm_val *val)
{
    PyObject *v;
    if (val_small(val, &v)) {
        if (v != NULL)
            *val = (struct shm_val){.tag = SHM_VAL_NONE}; /* all of it: it may be a secret */
        return v;
    }
    struct shm_ctx *c = core_ctx(prog);
    if (c == NULL)
        return NULL;
    struct shm_val mine;
    shm_val_take(c, &mine, val);
    v = val_decode(prog, c, &mine, core_value_decode);
    shm_val_drop(c, &mine);
    return v;
}

/* In place, without a copy: who looks holds what holds the value, and an outcome is written once. A
 * copy would need room, and a full heap is when one wants to know how a goroutine ended. */
PyObject *core_val_peek(CoreProg *prog, const struct shm_val *val)
{
    PyObject *v;
    if (val_small(val, &v))
        return v;
    struct shm_ctx *c = core_ctx(prog);
    return c == NULL ? NULL : val_decode(prog, c, val, core_value_decode);
}

PyObject *core_exc_peek(CoreProg *prog, const struct shm_val *val)
{
    struct shm_ctx *c = core_ctx(prog);
    if (c == NULL)
        return NULL;
    if (val->tag == SHM_VAL_NONE) { /* there was no room to keep it */
        core_shm_error(prog, SHM_ENOMEM);
        return core_take_exc();
    }
    return val_decode(prog, c, val, core_exc_decode);
}
