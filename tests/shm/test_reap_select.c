/* Tests of reap.c and select.c: an M is killed on its way through a select of more cases than fit
 * into one transaction and into m->held (deaths.h). Afterwards no lock is held, a goroutine that
 * was in select waits on all its channels or comes up with one case, and each value is somewhere
 * once. */
#include "deaths.h"

/* SHARED: of one channel, in both directions; each of the others has a channel of its own. */
enum { CASES = 70, SHARED = 6, VALUES = 2 * CASES };

struct world { /* shared with the children */
    shm_off ch[CASES], table;
    shm_gref parked;
    _Atomic uint32_t got; /* value + 1 that the M received */
    uint8_t seen[VALUES];
};
static struct world *W;

static void park(struct shm_ctx *c, shm_gref r, uint64_t values)
{
    struct shm_case cases[CASES];
    struct shm_val v;
    uint32_t which;
    for (uint32_t i = 0; i < CASES; i++)
        cases[i] = i % 2 ? s_send(W->ch[i], v_ref(c, values + i, W->table)) : s_recv(W->ch[i]);
    CHECK_EQ(shm_select_park(c, cases, CASES, r, &which, &v), SHM_PARKED);
}

static void build(void)
{
    if (W == NULL)
        W = h_shared(sizeof *W);
    memset(W, 0, sizeof *W);
    CHECK_EQ(shm_chan_new(&w, 0, &W->table), SHM_OK);
    for (uint32_t i = 0; i < CASES; i++) {
        if (i > 0 && i < SHARED) {
            shm_obj_ref(&w, W->ch[0]);
            W->ch[i] = W->ch[0];
        } else {
            CHECK_EQ(shm_chan_new(&w, 0, &W->ch[i]), SHM_OK);
        }
    }
}

static void build_parked(void)
{
    build();
    W->parked = l_new(&w);
    park(&w, W->parked, 0);
}

/* ---- what an M does when it dies ------------------------------------------------------------- */

static void parks(struct shm_ctx *c)
{
    park(c, l_new(c), 0);
}

static void tries(struct shm_ctx *c)
{
    struct shm_case cases[CASES];
    struct shm_val v;
    uint32_t which;
    for (uint32_t i = 0; i < CASES; i++)
        cases[i] = s_recv(W->ch[i]);
    int e = shm_select_try(c, cases, CASES, &which, &v);
    CHECK_EQ(e, W->parked ? SHM_OK : SHM_EAGAIN);
    if (e == SHM_OK) {
        store_rlx(&W->got, (uint32_t)v_num(c, &v) + 1);
        shm_val_drop(c, &v);
    }
}

/* The goroutine comes up by one case, here, and leaves its other queues. */
static void wakes(struct shm_ctx *c)
{
    struct shm_val v = v_ref(c, CASES, W->table);
    uint32_t tag;
    CHECK_EQ(shm_chan_trysend(c, W->ch[CASES - 4], &v), SHM_OK);
    shm_gref r = l_next(c);
    CHECK_EQ(r, W->parked);
    CHECK_EQ(shm_select_done(c, r, &tag), CASES - 4);
    shm_val_drop(c, &shm_g(c, r)->value);
}

static void cancels(struct shm_ctx *c)
{
    CHECK(shm_wait_abort(c, W->parked, SHM_W_EPOCH(load_acq(&shm_g(c, W->parked)->wait)), 2));
    shm_ready(c, W->parked, true);
}

/* ---- afterwards ------------------------------------------------------------------------------ */

static void see(const struct shm_val *v)
{
    if (v->tag != SHM_VAL_NONE)
        CHECK_EQ(W->seen[v_num(&w, v)]++, 0); /* once */
}

static void finish(shm_gref r)
{
    struct shm_g *g = shm_g(&w, r);
    uint32_t tag;
    if (g->waitkind == SHM_WAIT_SELECT)
        shm_select_done(&w, r, &tag);
    see(&g->value);
    shm_val_drop(&w, &g->value);
    l_end(&w, r);
}

static void apart(uint32_t hands)
{
    shm_gref r;
    struct shm_val v;
    uint32_t sent = 0;
    (void)hands;
    while ((r = l_next(&w)) != 0)
        finish(r);
    CHECK_SEGMENT(&k);
    for (uint64_t i = 1; i < load_acq(&w.hdr->g_next); i++) {
        struct shm_g *g = &w.gtab[i];
        uint64_t st = load_acq(&g->status);
        if (SHM_ST_STATUS(st) == Gdead)
            continue;
        CHECK_EQ(SHM_ST_STATUS(st), Gwaiting); /* on all of them: one more look at each lock */
        for (uint32_t n = SHARED; n < CASES; n++) {
            struct shm_chan *ch = shm_at(&w, W->ch[n]);
            shm_lock(&w, &ch->lock);
            CHECK(n % 2 ? ch->sendq_first != 0 : ch->recvq_first != 0);
            shm_unlock(&w, &ch->lock);
        }
        r = (uint64_t)SHM_ST_GEN(st) << 32 | i;
        CHECK_EQ(shm_chan_tryrecv(&w, W->ch[CASES - 1], &v), SHM_OK);
        CHECK_EQ(v_num(&w, &v), CASES - 1);
        see(&v);
        shm_val_drop(&w, &v);
        sent++;
        CHECK_EQ(l_next(&w), r);
        finish(r);
    }
    CHECK(sent <= 1);
    if (W->got)
        CHECK_EQ(W->seen[W->got - 1]++, 0);
    for (uint32_t n = 0; n < CASES; n++) {
        struct shm_chan *ch = shm_at(&w, W->ch[n]);
        CHECK(ch->sendq_first == 0 && ch->recvq_first == 0 && load_acq(&ch->lock) == 0);
        shm_obj_unref(&w, W->ch[n]);
    }
    shm_obj_unref(&w, W->table);
}

/* lost: the references of the cases, taken or given back one by one (essay of handle.c). */
static const struct act acts[] = {
    {"a select of many cases parks", build, parks, apart, 0, CASES + 8},
    {"a select of many cases finds none", build, tries, apart, 0, 0},
    {"a select of many cases finds one", build_parked, tries, apart, 1, 4},
    {"a select of many cases is woken", build_parked, wakes, apart, 1, CASES + 8},
    {"a select of many cases is cancelled", build_parked, cancels, apart, 0, 0},
};
#define N (sizeof acts / sizeof *acts)

static void test_an_m_killed_at_each_failpoint_of_a_large_select_leaves_a_whole_segment(void)
{
    d_killed_everywhere(acts, N);
}
static void test_a_reaper_killed_at_each_of_its_failpoints_is_followed_by_another(void)
{
    d_reaper_killed(&acts[0], 1); /* quadratic: those that the others are like */
    d_reaper_killed(&acts[3], 1);
}

H_MAIN(T(test_an_m_killed_at_each_failpoint_of_a_large_select_leaves_a_whole_segment),
       T(test_a_reaper_killed_at_each_of_its_failpoints_is_followed_by_another))
