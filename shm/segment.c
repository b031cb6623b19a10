/* segment.c — a program's one shared-memory object: formatted, mapped, grown; and its M slots.
 *
 * WHERE THINGS LIE. The tables stand in a fixed order, each from a page boundary, found by the
 * offsets in the header; the heap is last and takes the rest:
 *
 *     hdr | code table | reasons | P table | M table | g table ........ | heap ................. |
 *     all of it now      16 KiB    nprocs+1  nprocs+4  by g.c in chunks   by heap.c, run by run
 *
 * The size is reserved at once (ftruncate, MAP_NORESERVE: addresses, not memory) and committed as
 * it is needed. Rejected: one object per table, or growing by ftruncate and mremap. Both would make
 * a base address change under a running M, and every pointer in a ctx with it.
 *
 * INV no-sigbus: a byte of the mapping is touched only after shm_commit() has backed it. A page of
 * tmpfs that cannot be had is SIGBUS at a load or store, anywhere; with posix_fallocate it is an
 * error code at the one call that asked. Loads count too: reading a hole allocates it. So who walks
 * a table stops at what is committed: hdr->max_m, hdr->g_committed, hdr->heap_top.
 *
 * A WATCHER (a monitor) trusts nothing that others can write. Its header is a copy of its own: what
 * has been checked is still so when it is used, however long that takes. What the tables say it
 * checks where it follows it. That the object is cut short under its mapping is for who watches to
 * deal with (_core/guard.c): SIGBUS is the process's, not a library's.
 *
 * AN M SLOT, taken and given back
 *   1 shm_minit moves (kind, pid) from (FREE, 0) to (kind, its pid) by one 64-bit CAS, so there is
 *     no moment at which a slot is taken and names nobody: a reaper could never free such a one.
 *   2 it raises the slot's epoch: lock words of the slot's former owner never match it again.
 *   3 shm_mexit gives everything the slot owns to the others, and stores (FREE, 0) last.
 * Counters are not cleared between owners: sums over all slots stay sums over the program. */
#include "internal.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096ULL
#define COMMIT_SLICE (16ULL << 20) /* at most this much per system call: a signal restarts one */
#define FIRST_MS 4                 /* slots made at the start beside the workers' */

static_assert(offsetof(struct shm_m, pid) == offsetof(struct shm_m, kind) + 4 &&
                  offsetof(struct shm_m, kind) % 8 == 0,
              "kind and pid are one word for shm_minit");
static_assert(sizeof(struct shm_m) % SHM_CACHELINE == 0, "Ms share no line");
static_assert(sizeof(struct shm_p) % SHM_CACHELINE == 0, "Ps share no line");
static_assert(offsetof(struct shm_p, runqtail) / SHM_CACHELINE !=
                  offsetof(struct shm_p, runqhead) / SHM_CACHELINE,
              "owner and thieves write different lines");
static_assert(sizeof(struct shm_chan) % 8 == 0 && sizeof(struct shm_join) % 8 == 0, "words");
static_assert(sizeof(struct shm_timer) % 8 == 0 && sizeof(struct shm_afterfunc) % 8 == 0 &&
                  sizeof(struct shm_context) % 8 == 0 && sizeof(struct shm_tnode) == 24,
              "words");

static uint64_t page_up(uint64_t n)
{
    return (n + PAGE - 1) & ~(PAGE - 1);
}

uint64_t shm_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

/* ---- errors ---------------------------------------------------------------------------------- */

void (*shm_throw_hook)(const char *text);

_Noreturn void shm_throw(const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (shm_throw_hook)
        shm_throw_hook(text);
    fprintf(stderr, "mpgort: fatal error: %s\n", text);
    abort();
}

const char *shm_strerror(int err)
{
    switch (err) {
    case SHM_OK:
        return "ok";
    case SHM_PARKED:
        return "parked";
    case SHM_ENOMEM:
        return "the shared heap is at its ceiling";
    case SHM_ENOSPC:
        return "no room left in shared memory";
    case SHM_EGFULL:
        return "too many goroutines";
    case SHM_EAGAIN:
        return "would block";
    case SHM_ECLOSED:
        return "channel closed";
    case SHM_EBADSEG:
        return "not a segment of this program version and user";
    case SHM_ETIME:
        return "timed out";
    case SHM_EINTR:
        return "interrupted";
    case SHM_EFULL:
        return "a fixed table is full";
    case SHM_EDEAD:
        return "the program is shutting down";
    case SHM_ESYS:
        return "a system call failed";
    case SHM_EDEADLOCK:
        return "all goroutines are asleep";
    case SHM_ERETIRE:
        return "this worker is beyond need";
    case SHM_EOWNER:
        return "the holder of the lock died";
    }
    return "unknown error";
}

/* ---- the mapping ----------------------------------------------------------------------------- */

/* The offsets that a header's sizes imply: creation writes them,
 * attach holds a header against them. */
struct places {
    uint64_t code, reason, ptab, mtab, gtab, heap, size;
};

static struct places places_for(uint32_t max_g, uint64_t heap_bytes)
{
    struct places l;
    l.code = page_up(sizeof(struct shm_hdr));
    l.reason = l.code + page_up(shm_code_table_bytes());
    l.ptab = l.reason + page_up(SHM_MAX_REASON * SHM_REASON_BYTES);
    l.mtab = l.ptab + page_up(SHM_MAX_P * sizeof(struct shm_p));
    l.gtab = l.mtab + page_up(SHM_MAX_M * sizeof(struct shm_m));
    l.heap = l.gtab + page_up((uint64_t)max_g * sizeof(struct shm_g));
    l.size = l.heap + heap_bytes;
    return l;
}

int shm_commit(struct shm_ctx *c, shm_off from, uint64_t n)
{
    uint64_t at = from & ~(PAGE - 1), end = page_up(from + n);
    if (end > c->mapped)
        return SHM_ENOMEM;
    while (at < end) {
        uint64_t slice = end - at < COMMIT_SLICE ? end - at : COMMIT_SLICE;
        /* The kernel takes back what a failed or interrupted call had got. */
        int e = posix_fallocate(c->fd, (off_t)at, (off_t)slice);
        if (e == EINTR)
            continue;
        if (e == ENOSPC || e == ENOMEM || e == EFBIG)
            return SHM_ENOSPC;
        if (e) {
            errno = e;
            return SHM_ESYS;
        }
        at += slice;
    }
    return SHM_OK;
}

static int map(struct shm_ctx *c, int fd, uint64_t size)
{
    /* A monitor's descriptor may be read-only: it gets a mapping it cannot write by mistake. */
    int acc = fcntl(fd, F_GETFL);
    if (acc < 0)
        return SHM_ESYS;
    int prot = (acc & O_ACCMODE) == O_RDONLY ? PROT_READ : PROT_READ | PROT_WRITE;
    void *base = mmap(NULL, size, prot, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED)
        return SHM_ESYS;
    memset(c, 0, sizeof *c);
    c->base = base;
    c->hdr = base;
    c->fd = fd;
    c->kick_fd = -1;
    c->mapped = size;
    return SHM_OK;
}

static void find_tables(struct shm_ctx *c)
{
    c->mtab = shm_at(c, c->hdr->mtab_off);
    c->ptab = shm_at(c, c->hdr->ptab_off);
    c->gtab = shm_at(c, c->hdr->gtab_off);
}

static void format(struct shm_ctx *c, const struct shm_opts *o, const struct places *l,
                   uint64_t heap_bytes)
{
    struct shm_hdr *h = c->hdr;
    h->magic = SHM_MAGIC;
    h->version = SHM_LAYOUT_VERSION;
    h->header_bytes = sizeof *h;
    h->size = l->size;
    h->start_ns = shm_now_ns();
    h->uid = geteuid();
    h->pid0 = (uint32_t)getpid();
    store_rlx(&h->nprocs, o->nprocs);
    h->max_g = o->max_goroutines + 1;
    store_rlx(&h->max_p, o->nprocs + 1);
    h->m0_p = o->nprocs ? o->nprocs : SHM_MAX_P;
    h->migrate = o->migrate;
    h->scrub = o->scrub;
    h->shake = o->shake;
    h->heavy_bytes = o->heavy_bytes;
    h->code_off = l->code;
    h->reason_off = l->reason;
    h->ptab_off = l->ptab;
    h->mtab_off = l->mtab;
    h->gtab_off = l->gtab;
    h->heap_off = l->heap;
    h->heap_bytes = heap_bytes;
    h->heap_top = l->heap;
    snprintf(h->name, sizeof h->name, "%s", o->name ? o->name : "");
    /* Until shm_calibrate() has measured: the figures of a common virtual machine. */
    h->wake_cost_ns = 10000;
    h->spin_ns = 20000;
    store_rlx(&h->max_m, o->nprocs + FIRST_MS);
    store_rlx(&h->goidgen, 1);
    store_rlx(&h->g_next, 1); /* index 0 is "none" */
    find_tables(c);
    for (uint32_t i = 0; i <= o->nprocs; i++) {
        struct shm_p *p = &c->ptab[i];
        p->index = i;
        p->nosteal = i == h->m0_p;
        store_rlx(&p->status, Pidle);
        store_rlx(&p->timer0_when, UINT64_MAX);
        if (!p->nosteal) {
            _Atomic uint64_t *w = &h->idle_p[i / 64];
            store_rlx(w, load_rlx(w) | 1ULL << i % 64);
        }
    }
    for (uint32_t i = 0; i < o->nprocs + FIRST_MS; i++)
        c->mtab[i].index = i;
}

int shm_seg_create(struct shm_ctx *c, int fd, const struct shm_opts *o)
{
    uint64_t heap_bytes = o->heap_bytes & ~(PAGE - 1);
    if (o->nprocs >= SHM_MAX_P || o->nprocs + FIRST_MS > SHM_MAX_M || o->max_goroutines == 0 ||
        o->max_goroutines >= UINT32_MAX - 1 || heap_bytes < 16 * PAGE || heap_bytes >> 48) {
        errno = EINVAL;
        return SHM_ESYS;
    }
    struct places l = places_for(o->max_goroutines + 1, heap_bytes);
    if (ftruncate(fd, (off_t)l.size))
        return SHM_ESYS;
    struct shm_ctx n;
    int e = map(&n, fd, l.size);
    if (e)
        return e;
    e = shm_commit(&n, 0, l.code + shm_code_first_bytes());
    if (!e)
        e = shm_commit(&n, l.reason, l.ptab + (o->nprocs + 1) * sizeof(struct shm_p) - l.reason);
    if (!e)
        e = shm_commit(&n, l.mtab, (o->nprocs + FIRST_MS) * sizeof(struct shm_m));
    if (e) {
        munmap(n.base, n.mapped);
        return e;
    }
    format(&n, o, &l, heap_bytes);
    *c = n;
    return SHM_OK;
}

/* ---- attaching ------------------------------------------------------------------------------- */

#define REFUSE(...) (snprintf(why, SHM_WHY_BYTES, __VA_ARGS__), SHM_EBADSEG)

/* Who could have written to it: its own user, and nobody else. */
static int owner_ok(const struct stat *st, char *why)
{
    if (!S_ISREG(st->st_mode))
        return REFUSE("it is no shared memory");
    if (st->st_uid != geteuid())
        return REFUSE("it belongs to user %u, and this is user %u", st->st_uid, geteuid());
    if (st->st_mode & 07177)
        return REFUSE("its mode is %04o, not 0600: others may have written to it",
                      st->st_mode & 07777);
    return SHM_OK;
}

/* Whether a header, no more in anybody else's reach, describes an object of `size` bytes. */
static int header_ok(const struct shm_hdr *h, uint64_t size, char *why)
{
    if (h->magic != SHM_MAGIC)
        return REFUSE("it is no segment of mpgort");
    if (h->version != SHM_LAYOUT_VERSION || h->header_bytes != sizeof *h)
        return REFUSE("it is another version's: layout %u with a header of %u bytes, not %u with "
                      "%zu",
                      h->version, h->header_bytes, SHM_LAYOUT_VERSION, sizeof *h);
    if (h->uid != geteuid())
        return REFUSE("it was made by user %u, and this is user %u", h->uid, geteuid());
    if (h->size != size)
        return REFUSE("it has %llu bytes and was made with %llu: it was cut short, or is damaged",
                      (unsigned long long)size, (unsigned long long)h->size);
    uint32_t max_m = load_rlx(&h->max_m);
    uint32_t nprocs = load_rlx(&h->nprocs), max_p = load_rlx(&h->max_p);
    struct places l = places_for(h->max_g, h->heap_bytes);
    if (nprocs >= SHM_MAX_P || max_p <= nprocs || max_p > SHM_MAX_P ||
        (nprocs ? h->m0_p >= max_p : h->m0_p != SHM_MAX_P) || h->max_g < 2 || max_m > SHM_MAX_M ||
        h->m0_slot >= SHM_MAX_M || h->heap_bytes % PAGE || h->heap_bytes >> 48 ||
        h->code_off != l.code || h->reason_off != l.reason || h->ptab_off != l.ptab ||
        h->mtab_off != l.mtab || h->gtab_off != l.gtab || h->heap_off != l.heap ||
        h->size != l.size || h->heap_top < l.heap || h->heap_top > l.size ||
        load_rlx(&h->g_next) > h->max_g || load_rlx(&h->g_committed) > h->max_g ||
        load_rlx(&h->code_n) >= SHM_MAX_CODE || load_rlx(&h->reason_n) > SHM_MAX_REASON)
        return REFUSE("its header is damaged");
    return SHM_OK;
}

/* The header as it is now. pread, not the mapping: an object that is too short must be an error,
 * not a SIGBUS. */
static int read_header(int fd, struct shm_hdr *h, char *why)
{
    struct stat st;
    if (fstat(fd, &st))
        return REFUSE("it cannot be looked at: %s", strerror(errno));
    int e = owner_ok(&st, why);
    if (e)
        return e;
    if (pread(fd, h, sizeof *h, 0) != (ssize_t)sizeof *h)
        return REFUSE("it has %lld bytes: too few for a segment", (long long)st.st_size);
    return header_ok(h, (uint64_t)st.st_size, why);
}

int shm_seg_attach(struct shm_ctx *c, int fd, char why[SHM_WHY_BYTES])
{
    struct shm_hdr h;
    int e = read_header(fd, &h, why);
    if (e)
        return e;
    struct shm_ctx n;
    e = map(&n, fd, h.size);
    if (e)
        return e;
    /* Not its own hdr: that may have changed since. */
    n.mtab = shm_at(&n, h.mtab_off);
    n.ptab = shm_at(&n, h.ptab_off);
    n.gtab = shm_at(&n, h.gtab_off);
    *c = n;
    return SHM_OK;
}

int shm_seg_watch(struct shm_ctx *c, int fd, char why[SHM_WHY_BYTES])
{
    int e = shm_seg_attach(c, fd, why);
    if (e)
        return e;
    /* The header's pages hold nothing else. */
    void *own = mmap(c->base, page_up(sizeof *c->hdr), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    e = own == MAP_FAILED ? SHM_ESYS : shm_seg_look(c, why);
    if (e)
        shm_seg_detach(c);
    return e;
}

int shm_seg_look(struct shm_ctx *c, char why[SHM_WHY_BYTES])
{
    struct shm_hdr h;
    int e = read_header(c->fd, &h, why);
    if (!e && (h.size != c->mapped || h.gtab_off != shm_offof(c, c->gtab)))
        e = REFUSE("its header is damaged: it was another one's before");
    if (!e)
        memcpy((void *)c->hdr, &h, sizeof h);
    return e;
}

void shm_seg_detach(struct shm_ctx *c)
{
    munmap(c->base, c->mapped);
    memset(c, 0, sizeof *c);
    c->fd = c->kick_fd = -1;
}

void shm_ctx_copy(struct shm_ctx *to, const struct shm_ctx *from)
{
    /* What belongs to the mapping. The rest is the M's of `from`, who may be in his loop. */
    *to = (struct shm_ctx){.base = from->base,
                           .hdr = from->hdr,
                           .mtab = from->mtab,
                           .ptab = from->ptab,
                           .gtab = from->gtab,
                           .fd = from->fd,
                           .kick_fd = from->kick_fd,
                           .mapped = from->mapped};
}

void shm_ctx_forked(struct shm_ctx *c)
{
    c->m = NULL;
    c->p = NULL;
    c->m1 = 0;
    c->in_tx = false;
    c->tick = 0;
    c->shake = 0;
}

/* ---- M slots --------------------------------------------------------------------------------- */

/* kind and pid as the one word that shm_minit and shm_mexit move. */
static _Atomic uint64_t *slot_word(struct shm_m *m)
{
    return (_Atomic uint64_t *)&m->kind;
}

static uint64_t slot_value(uint32_t kind, uint32_t pid)
{
    union {
        uint32_t half[2];
        uint64_t word;
    } u = {.half = {kind, pid}};
    return u.word;
}

/* A slot of kind FREE, moved to (kind, pid); NULL: all that have pages are taken. */
static struct shm_m *take_slot(struct shm_ctx *c, uint32_t kind)
{
    uint32_t n =
        load_acq(&c->hdr->max_m); /* pairs with the CAS in shm_minit: the pages are there */
    for (uint32_t i = 0; i < n; i++) {
        uint64_t free = slot_value(SHM_M_FREE, 0);
        /* Acquires what shm_mexit, or the reaper of the former owner, left in the slot. */
        if (cas_acqrel(slot_word(&c->mtab[i]), &free, slot_value(kind, (uint32_t)getpid())))
            return &c->mtab[i];
    }
    return NULL;
}

int shm_minit(struct shm_ctx *c, uint32_t kind)
{
    struct shm_hdr *h = c->hdr;
    struct shm_m *m;
    while (!(m = take_slot(c, kind))) {
        uint32_t n = load_acq(&h->max_m); /* pairs with the CAS below */
        if (n == SHM_MAX_M)
            return SHM_EFULL;
        int e = shm_commit(c, h->mtab_off + n * sizeof(struct shm_m), sizeof(struct shm_m));
        if (e)
            return e;
        cas_acqrel(&h->max_m, &n, n + 1); /* publishes the pages; lost: another has made them */
    }
    m->index = (uint32_t)(m - c->mtab);
    store_rel(&m->epoch, load_rlx(&m->epoch) + 1); /* before the first lock; pairs with mine() */
    store_rlx(&m->tid, (uint64_t)syscall(SYS_gettid));
    store_rlx(&m->attn, 0);
    store_seq(&m->kill, 0); /* its former owner's */
    m->kill_ns = 0;
    store_rlx(&m->note, 0);
    store_rlx(&m->looping, 0);
    store_rlx(&m->stands_at, 0);
    store_rlx(&m->end, 0);
    store_rlx(&m->words_sig, 0);
    c->m = m;
    c->p = NULL;
    c->m1 = m->index + 1;
    c->in_tx = false;
    c->now_ns = shm_now_ns();
    c->rng = (c->now_ns ^ (uint64_t)c->m1 << 40) | 1;
    shm_shake_begin(c);
    if (kind == SHM_M_M0)
        h->m0_slot = m->index;
    return SHM_OK;
}

void shm_m_give(struct shm_m *m)
{
    store_rel(slot_word(m), slot_value(SHM_M_FREE, 0)); /* pairs with the CAS in take_slot() */
}

void shm_mexit(struct shm_ctx *c)
{
    struct shm_m *m = c->m;
    if (c->p || load_rlx(&m->held_n) || load_rlx(&m->curg) || c->in_tx)
        shm_throw("mexit: M %u still has P %d, goroutine %#llx, %u locks", m->index,
                  c->p ? (int)c->p->index : -1, (unsigned long long)load_rlx(&m->curg),
                  load_rlx(&m->held_n));
    shm_handles_drop(c);
    m->hand = m->hand_join = m->hand_group = 0;
    shm_gfree_flush(c, m);
    shm_heap_flush(c, c->m);
    store_rlx(&m->tid, 0);
    FAILPOINT("segment.mexit.empty");
    shm_m_give(m);
    shm_ctx_forked(c);
}
