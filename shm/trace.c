/* trace.c — the execution trace: what each M did when, for people and for Perfetto.
 *
 * While hdr->trace_on is set, every M writes an event of 32 bytes into a ring of its own at each
 * move of a goroutine: created, started, parked, readied, yielded, preempted, ended. A ring holds
 * the last hdr->trace_cap events and overwrites the oldest; nobody waits for a reader, and what a
 * killed M had written is still there. Source: Go runtime/trace.go.
 *
 * A park's event is written BEFORE the status changes (INV trace-first): after it the goroutine may
 * be readied, run and end elsewhere, and its events there would come before its park here. The
 * stack of a park is a number in the code table (code.c), which the binding interned before.
 *
 * THE RINGS are one block, made at the first start and kept: an M that has just seen trace_on may
 * write at any time later. An M whose slot has no ring (it came after the start and slots had run
 * out) writes nothing.
 *
 * READING is done beside writing. The owner stores an event, then its count (release); the reader
 * takes the count, copies what the ring holds, takes the count again and drops what may have been
 * overwritten meanwhile. So a reader never stops an M, and never sees half an event.
 *
 * And Go's SCHED line, which is a snapshot and needs none of this. */
#include "internal.h"

#include <stdio.h>

#define SPARE_RINGS 8 /* for Ms that come later */
#define LINE 64

#define WORDS (sizeof(struct shm_event) / sizeof(uint64_t))

struct ring {
    _Alignas(LINE) _Atomic uint64_t n; /* events ever written; the owner's */
    _Alignas(LINE) _Atomic uint64_t ev[][WORDS];
};

static uint64_t ring_bytes(uint32_t cap)
{
    return LINE + (uint64_t)cap * sizeof(struct shm_event);
}

static struct ring *ring_of(const struct shm_ctx *c, uint32_t m)
{
    uint64_t first = (c->hdr->trace_off + LINE - 1) & ~(uint64_t)(LINE - 1);
    return (struct ring *)(void *)(c->base + first + m * ring_bytes(c->hdr->trace_cap));
}

void shm_trace(struct shm_ctx *c, unsigned what, uint64_t goid, unsigned reason, uint32_t arg)
{
    if (c->m->index >= load_acq(&c->hdr->trace_rings)) /* pairs with the store in trace_start */
        return;
    struct ring *r = ring_of(c, c->m->index);
    uint64_t n = load_rlx(&r->n); /* own word */
    struct shm_event e = {.ns = shm_now_ns(),
                          .goid = goid,
                          .what = (uint16_t)what,
                          .reason = (uint16_t)reason,
                          .p1 = (uint16_t)(c->p ? c->p->index + 1 : 0),
                          .m = (uint16_t)c->m->index,
                          .stack = c->trace_stack,
                          .arg = arg};
    uint64_t w[WORDS];
    memcpy(w, &e, sizeof e);
    for (size_t i = 0; i < WORDS; i++)
        store_rlx(&r->ev[n % c->hdr->trace_cap][i], w[i]); /* the count publishes them */
    c->trace_stack = c->trace_name = 0;
    store_rel(&r->n, n + 1); /* publishes the event; pairs with load_acq in shm_trace_read() */
}

int shm_trace_start(struct shm_ctx *c, uint32_t cap)
{
    struct shm_hdr *h = c->hdr;
    uint32_t off = 0;
    if (!cas_acqrel(&h->trace_on, &off, SHM_TRACE_STARTING)) /* one starts; the others are told */
        return SHM_EAGAIN;
    if (load_rlx(&h->trace_rings) == 0) { /* made by whoever holds SHM_TRACE_STARTING */
        uint32_t rings = load_acq(&h->max_m) + SPARE_RINGS; /* pairs with shm_minit() */
        shm_off block;
        int e = shm_alloc(c, LINE + rings * ring_bytes(cap), &block);
        if (e) {
            store_rel(&h->trace_on, 0); /* nothing was changed */
            return e;
        }
        h->trace_off = block;
        h->trace_cap = cap;
        for (uint32_t m = 0; m < rings; m++)
            store_rlx(&ring_of(c, m)->n, 0); /* nobody else knows them yet */
        shm_tx_begin(c);
        shm_publish(c, block);
        shm_tx_commit(c);
        store_rel(&h->trace_rings, rings); /* after the rings; pairs with load_acq in shm_trace() */
    }
    h->trace_since_ns = shm_now_ns();
    store_rel(&h->trace_on, SHM_TRACE_ON); /* last; who sees it late misses some: shm_tracing() */
    return SHM_OK;
}

int shm_trace_stop(struct shm_ctx *c)
{
    uint32_t on = SHM_TRACE_ON;
    return cas_acqrel(&c->hdr->trace_on, &on, 0) ? SHM_OK : SHM_EAGAIN; /* pairs with trace_start */
}

size_t shm_trace_read(const struct shm_ctx *c, uint32_t m, struct shm_event *out)
{
    const struct shm_hdr *h = c->hdr;
    if (m >= load_acq(&h->trace_rings)) /* pairs with the store in trace_start */
        return 0;
    struct ring *r = ring_of(c, m);
    uint32_t cap = h->trace_cap;
    uint64_t n = load_acq(&r->n), from = n > cap ? n - cap : 0; /* pairs with shm_trace() */
    for (uint64_t i = from; i < n; i++) {
        uint64_t w[WORDS];
        for (size_t k = 0; k < WORDS; k++)
            w[k] = load_rlx(&r->ev[i % cap][k]); /* may be torn: then it is dropped below */
        memcpy(&out[i - from], w, sizeof w);
    }
    /* The event after the last may be half written over the oldest. */
    uint64_t later = load_acq(&r->n) + 1, good = later > cap ? later - cap : 0;
    uint64_t lost = good > from ? good - from : 0, have = n - from;
    while (lost < have && out[lost].ns < h->trace_since_ns) /* of an earlier trace */
        lost++;
    if (lost >= have)
        return 0;
    memmove(out, out + lost, (have - lost) * sizeof *out);
    return have - lost;
}

/* ---- SCHED ----------------------------------------------------------------------------------- */

size_t shm_schedtrace(struct shm_ctx *c, char *buf, size_t n)
{
    struct shm_hdr *h = c->hdr;
    uint32_t idlep = 0, threads = 0, spinning = 0, idle = 0;
    uint32_t nm = load_acq(&h->max_m), np = load_rlx(&h->nprocs); /* nm: pairs with shm_minit() */
    for (uint32_t i = 0; i < shm_nworkp(c); i++)                  /* a snapshot, as all here */
        idlep += i != h->m0_p && SHM_ST_STATUS(load_rlx(&c->ptab[i].status)) == Pidle;
    for (uint32_t i = 0; i < nm; i++) {
        uint32_t kind = load_rlx(&c->mtab[i].kind), state = load_rlx(&c->mtab[i].spinning);
        threads += kind != SHM_M_FREE;
        spinning += kind != SHM_M_FREE && state == SHM_M_SPINNING;
        idle += (kind == SHM_M_WORKER || kind == SHM_M_M0) && state == SHM_M_IDLE;
    }
    size_t at = 0;
#define PUT(...)                                                        \
    do {                                                                \
        int put = snprintf(buf + at, at < n ? n - at : 0, __VA_ARGS__); \
        at = at + (size_t)put < n ? at + (size_t)put : n ? n - 1 : 0;   \
    } while (0)
    PUT("SCHED %llums: gomaxprocs=%u idleprocs=%u threads=%u spinningthreads=%u idlethreads=%u "
        "runqueue=%llu [",
        (unsigned long long)((shm_now_ns() - h->start_ns) / 1000000), np ? np : 1, idlep, threads,
        spinning, idle, (unsigned long long)(load_rlx(&h->runq_size) + load_rlx(&h->batchq_size)));
    for (uint32_t i = 0; i < shm_nworkp(c); i++) {
        struct shm_p *p = &c->ptab[i];
        if (i != h->m0_p && SHM_ST_STATUS(load_rlx(&p->status)) != Pdead)
            PUT(i ? " %u" : "%u", shm_runqsize(p) + (load_rlx(&p->runnext) != 0));
    }
    PUT("]");
#undef PUT
    return at;
}
