/* cont.c — where a goroutine is between two turns: bytes in the segment, or live at home.
 *
 * It owns `homes` (the goroutines that are live in this process) and the layout of a stored
 * continuation: [chain or call], and where the goroutine has context variables (SHM_GF_CONTEXT)
 * [context][u32 length of the context]; the handle words of both at the block's end.
 *
 * WARM. Most goroutines go on where they parked. So the M that parks a light one keeps the live
 * coroutine a while beside the bytes (`warm`, one place per g index modulo its size), and goes on
 * with it if the goroutine comes up here next: that saves decoding (a third of a switch). The bytes
 * are the truth: any M may take them, and one that comes back from elsewhere (ctx->moved) is
 * decoded. What is kept cannot have changed meanwhile: an encoded chain is closed, nobody else
 * refers to what could change in it. MPGORT_MIGRATE=always keeps none. Rejected: to keep them
 * without a bound (a parked goroutine is to cost 256 bytes, not a live frame and its handles); they
 * go when the M rests.
 *
 * THE BLOCK, TOO. A goroutine that parks again and again writes nearly the same bytes, with the
 * same handles. So the block that it went on from is not freed: it is this M's (`kept`; if the M
 * dies, garbage with its handles) until the goroutine parks, which writes the new bytes over the
 * old ones if the handle words are the same and the size class is, or ends, waits otherwise or is
 * kept at home. Nothing is counted, allocated or freed then, which was a fifth of a switch.
 *
 * WITH RETRIES a goroutine is stored at every await, in MPGORT_MIGRATE=never too: one that cannot
 * be is told so (SerializationError). Only while a thread of its process works for it is it at
 * home, live, beside the checkpoint of its last await (shm/retry.c).
 *
 * AT HOME. main (its frame is the caller's), pinned (cannot be encoded: home->reason says which
 * local and why), heavy (over the budget). The live coroutine stays in `homes`, g->home_m1 names
 * this M, and ready() queues it here. A pinned or heavy one is tried again after 1, 2, 4 ... 128
 * parks, so a G moves again once its file is closed, and a reducer with a large dict does not pay
 * for it at every park. */
#include "proc.h"
#include <string.h>

#define BACKOFF_MAX 128

/* ---- home ------------------------------------------------------------------------------------ */

void core_home_free(struct core_home *h)
{
    Py_CLEAR(h->root);
    Py_CLEAR(h->park);
    Py_CLEAR(h->ctx);
    Py_CLEAR(h->reason);
    Py_CLEAR(h->value);
    PyMem_Free(h);
}

struct core_home *core_home_get(struct core_proc *s, shm_gref gr)
{
    uint32_t i = shm_gidx(gr);
    struct core_home *h = i < s->homes_cap ? s->homes[i] : NULL;
    return h != NULL && h->g == gr ? h : NULL;
}

struct core_home *core_home_make(struct core_proc *s, shm_gref gr)
{
    uint32_t i = shm_gidx(gr);
    if (i >= s->homes_cap) {
        uint32_t cap = s->homes_cap ? s->homes_cap : 64;
        while (cap <= i)
            cap *= 2;
        struct core_home **t = PyMem_Realloc(s->homes, cap * sizeof *t);
        if (t == NULL)
            return PyErr_NoMemory(), NULL;
        memset(t + s->homes_cap, 0, (cap - s->homes_cap) * sizeof *t);
        s->homes = t;
        s->homes_cap = cap;
    }
    if (s->homes[i] != NULL) /* of a G whose slot was reused: it died elsewhere, by force */
        core_home_drop(s, s->homes[i]);
    struct core_home *h = s->homes[i] = PyMem_Calloc(1, sizeof *h);
    if (h == NULL)
        return PyErr_NoMemory(), NULL;
    h->g = gr;
    s->nhomes++;
    return h;
}

void core_home_drop(struct core_proc *s, struct core_home *h)
{
    s->homes[shm_gidx(h->g)] = NULL;
    s->nhomes--;
    core_home_free(h);
}

/* ---- warm ------------------------------------------------------------------------------------ */

static void cool(struct core_warm *w)
{
    PyObject *root = w->root, *park = (PyObject *)w->park, *ctx = w->ctx;
    w->g = 0;
    w->root = w->ctx = NULL;
    w->park = NULL;
    if (root != NULL) {
        core_chain_drop_kept(root, &w->frames);
        Py_DECREF(park);
        Py_XDECREF(ctx);
    }
}

/* The goroutine gr, light, is parked in pk: its live chain is the table's now (root, pk: owned). */
void core_warm_put(struct core_proc *s, shm_gref gr, PyObject *root, CorePark *pk)
{
    struct core_warm *w = &s->warm[shm_gidx(gr) % CORE_WARM];
    if (s->c->hdr->migrate == 1) {
        core_chain_drop(root);
        Py_DECREF(pk);
        return;
    }
    if (w->root == NULL) {
        core_chain_frames_take(root, &w->frames);
    } else {
        struct core_frames frames = {NULL, 0, 0};
        core_chain_frames_take(root, &frames);
        cool(w);
        PyMem_Free(w->frames.gens);
        w->frames = frames;
    }
    bool bare = s->ctx == s->base_ctx && core_context_empty(s->ctx);
    w->g = gr;
    w->root = root;
    w->park = pk;
    w->ctx = bare ? NULL : Py_XNewRef(s->ctx);
}

/* gr has been elsewhere: what is here is not what it stands in. */
void core_warm_stale(struct core_proc *s, shm_gref gr)
{
    struct core_warm *w = &s->warm[shm_gidx(gr) % CORE_WARM];
    if (w->g == gr)
        cool(w);
}

/* The chain that gr, which came up here, has stood in since it parked here; false: decode. */
bool core_warm_take(struct core_proc *s, shm_gref gr, struct core_warm *out)
{
    struct core_warm *w = &s->warm[shm_gidx(gr) % CORE_WARM];
    if (w->g != gr)
        return false;
    if (s->c->moved) {
        core_warm_stale(s, gr);
        return false;
    }
    *out = *w;
    w->g = 0;
    w->root = w->ctx = NULL;
    w->park = NULL;
    w->frames.n = 0; /* its room is used again */
    return true;
}

void core_warm_rest(struct core_proc *s)
{
    for (uint32_t i = 0; i < CORE_WARM; i++)
        if (s->warm[i].root != NULL)
            cool(&s->warm[i]);
}

/* ---- continuations --------------------------------------------------------------------------- */

/* The running goroutine's bytes are used up: its block stays with this M until it parks or ends. */
void core_cont_take(struct core_proc *s, struct shm_g *g)
{
    s->kept = shm_gcont_take(s->c, g);
    g->flags &= (uint8_t)~SHM_GF_CONTEXT;
}

/* Lets go of that block. */
void core_cont_let(struct core_proc *s)
{
    shm_off off = s->kept;
    s->kept = 0;
    if (off != 0)
        shm_cont_drop(s->c, off, 0);
}

static bool same_words(const struct shm_ctx *c, shm_off off, const struct core_enc *e)
{
    uint32_t n;
    const uint64_t *w = shm_bytes_handles(c, off, &n);
    return n == e->nh && (n == 0 || memcmp(w, e->h, n * sizeof *w) == 0);
}

/* Stores e's bytes, followed by the context's, as g's continuation: into `kept`, if that is not 0
 * and fits, else that is let go. parks: all of the context, or ENC_PINNED, and e and kept are still
 * the caller's. */
int core_cont_store(struct core_proc *s, struct shm_ctx *c, struct shm_g *g, struct core_enc *e,
                    PyObject *ctx, shm_off kept, bool parks)
{
    shm_off off = kept;
    uint8_t has = 0;
    int r = 0;
    if (!core_context_empty(ctx)) {
        size_t before = (size_t)(e->p - e->base);
        bool storing = s->storing;
        s->storing |= parks;
        r = core_context_put(ctx, e, parks);
        s->storing = storing;
        if (r == ENC_PINNED)
            return r;
        uint32_t n = (uint32_t)((size_t)(e->p - e->base) - before);
        if (r == ENC_OK)
            r = core_enc_append(e, &n, sizeof n);
        if (r != ENC_OK) {
            core_enc_let(e, 0);
            if (kept != 0)
                shm_cont_drop(c, kept, 0);
            return -1;
        }
        has = SHM_GF_CONTEXT;
    }
    size_t n = (size_t)(e->p - e->base);
    if (kept == 0 || n > UINT32_MAX || !same_words(c, kept, e) ||
        !shm_cont_rewrite(c, kept, e->base, (uint32_t)n)) {
        r = n > UINT32_MAX ? SHM_ENOMEM : shm_cont_make(c, &off, e->base, (uint32_t)n, e->h, e->nh);
        if (kept != 0)
            shm_cont_drop(c, kept, 0);
    }
    core_enc_let(e, 0);
    if (r < 0)
        return core_shm_error(s->prog, r);
    g->flags = (uint8_t)((g->flags & ~SHM_GF_CONTEXT) | has);
    shm_gcont_set(c, g, off, (uint32_t)n);
    return 0;
}

/* Splits a continuation into chain (or call) and context; false: the lengths do not fit. */
static bool cont_split(const struct shm_g *g, const uint8_t *p, size_t n, size_t *chain,
                       size_t *ctx)
{
    *chain = n;
    *ctx = 0;
    if (g->flags & SHM_GF_CONTEXT) {
        uint32_t m;
        if (n < sizeof m)
            return false;
        memcpy(&m, p + n - sizeof m, sizeof m);
        if (m > n - sizeof m)
            return false;
        *ctx = m;
        *chain = n - sizeof m - m;
    }
    return true;
}

int core_cont_open(struct core_proc *s, const struct shm_g *g, const uint8_t **p, size_t *chain,
                   struct core_words *W)
{
    size_t ctx;
    uint32_t n;
    const struct shm_retry *y = shm_retry_of(s->c, g);
    shm_off off = y ? y->cont_off : g->cont_off;
    const uint64_t *h = shm_bytes_handles(s->c, off, &n);
    *p = shm_at(s->c, off);
    if (core_words_open(W, h, n) < 0)
        return -1;
    if (!cont_split(g, *p, y ? y->cont_len : g->cont_len, chain, &ctx)) {
        PyErr_SetString(core_err.BadContinuation, "the lengths in a continuation do not fit");
        return -1;
    }
    return ctx == 0 ? 0 : core_context_enter(s, *p + *chain, ctx, W);
}

/* Keeps the running goroutine here: root and pk move into its home. */
static int keep(struct core_proc *s, shm_gref gr, PyObject *root, CorePark *pk, uint8_t why,
                const char *reason)
{
    struct shm_g *g = core_g(s, gr);
    struct core_home *h = s->curhome;
    core_cont_let(s);
    if (h == NULL && (h = core_home_make(s, gr)) == NULL)
        return -1;
    h->root = root;
    h->park = pk;
    h->why = why;
    if (reason != NULL) {
        PyObject *text = PyUnicode_DecodeUTF8(reason, (Py_ssize_t)strlen(reason), "replace");
        if (text == NULL)
            PyErr_Clear();
        Py_XSETREF(h->reason, text);
    }
    if (s->ctx != s->base_ctx || !core_context_empty(s->ctx))
        Py_XSETREF(h->ctx, Py_XNewRef(s->ctx));
    g->home_m1 = (uint16_t)s->c->m1;
    g->home_why = why;
    g->op = (uint8_t)pk->kind;
    s->curhome = h;
    own_add(&s->c->m->st.home_parks, 1); /* owner only */
    return CORE_AT_HOME;
}

int core_cont_encode(struct core_proc *s, PyObject *root, PyObject *pk, size_t budget)
{
    core_enc_reset(&s->enc);
    s->enc.budget = budget;
    s->storing = true;
    int r = core_chain_encode(root, pk, &s->enc);
    s->storing = false;
    return r;
}

/* Makes the running goroutine complete outside this M's Python, if that can be, before it parks
 * (INV parked-complete). CORE_LIGHT: the bytes are stored, root and pk are still the caller's.
 * CORE_AT_HOME: they have moved. -1: exception; nothing has changed. */
int core_store(struct core_proc *s, shm_gref gr, PyObject *root, CorePark *pk)
{
    struct shm_g *g = core_g(s, gr);
    struct shm_hdr *hdr = s->c->hdr;
    struct core_home *h = s->curhome;
    bool retry = g->retries;
    bool whole = hdr->migrate == 1 || retry || (g->flags & SHM_GF_DURABLE) || s->retiring;
    if (g->flags & SHM_GF_MAIN)
        return keep(s, gr, root, pk, SHM_HOME_MAIN, NULL);
    if (h != NULL && h->locks > 0)
        return keep(s, gr, root, pk, SHM_HOME_LOCKED, NULL);
    if (hdr->migrate == 2 && !retry)
        return keep(s, gr, root, pk, SHM_HOME_PINNED, h ? NULL : "MPGORT_MIGRATE=never");
    if (core_park_ops[pk->kind].home)
        return keep(s, gr, root, pk, SHM_HOME_PINNED, "it waits for a thread of this process");
    if (h != NULL && h->skip > 0 && !retry) {
        h->skip--;
        return keep(s, gr, root, pk, h->why, NULL);
    }
    shm_off kept = s->kept;
    s->kept = 0;
    int r = core_cont_encode(s, root, (PyObject *)pk, whole ? SIZE_MAX : hdr->heavy_bytes);
    if (r == ENC_OK) {
        r = core_cont_store(s, s->c, g, &s->enc, s->ctx, kept, true);
        if (r < 0)
            return -1;
    }
    if (r == ENC_OK) {
        g->op = (uint8_t)pk->kind;
        g->home_m1 = 0;
        g->home_why = SHM_HOME_NONE;
        if (h != NULL) {
            s->curhome = NULL;
            core_home_drop(s, h);
        }
        return CORE_LIGHT;
    }
    core_enc_let(&s->enc, 0);
    if (kept != 0)
        shm_cont_drop(s->c, kept, 0);
    if (r == ENC_ERROR)
        return -1;
    if (retry) {
        PyErr_Format(core_err.SerializationError,
                     "goroutine %llu cannot wait here: it has retries, and what it holds cannot be "
                     "stored for a re-run: %s. Let go of that before the await, or spawn it "
                     "without retries",
                     (unsigned long long)g->goid, s->enc.reason);
        return -1;
    }
    r = keep(s, gr, root, pk, r == ENC_HEAVY ? SHM_HOME_HEAVY : SHM_HOME_PINNED, s->enc.reason);
    if (r == CORE_AT_HOME) {
        h = s->curhome;
        h->backoff =
            h->backoff ? (uint8_t)(h->backoff < BACKOFF_MAX ? h->backoff * 2 : BACKOFF_MAX) : 1;
        h->skip = h->backoff;
    }
    return r;
}

/* The operation ended at once after all: takes back what core_store() gave away. */
void core_unstore(struct core_proc *s, shm_gref gr, int how)
{
    struct shm_g *g = core_g(s, gr);
    if (how == CORE_LIGHT) {
        core_cont_take(s, g);
    } else {
        s->curhome->root = NULL;
        s->curhome->park = NULL;
    }
}
