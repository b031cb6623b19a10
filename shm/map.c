/* map.c — a hash map that all Ms share: what sync.Map and shared.dict stand on.
 *
 * One lock, chains of entries. A key is bytes that its user made canonical (equal keys, equal
 * bytes), in the entry; a value is a shm_val, which goes out as a copy. All is looked up, and what
 * must be allocated is allocated, before the transaction that changes the map.
 *
 * GROWING. An entry has two links. The chains of a new table are written into the links that are
 * not in use (map->gen says which are), where nobody looks; one transaction then makes table and
 * links the map's. So it needs neither a log as long as the map nor a moment at which an entry is
 * in no chain.
 *   INV map-complete   with the lock free, each entry is in the chain of its hash, once, and n
 *                      counts them */
#include "internal.h"

#define FIRST_BUCKETS 8

static struct shm_map *map_at(const struct shm_ctx *c, shm_off off)
{
    struct shm_map *m = shm_at(c, off);
    if (unlikely(off == 0 || shm_kind(&m->obj) != SHM_OBJ_MAP))
        shm_throw("map: %#llx is no map", (unsigned long long)off);
    return m;
}

static struct shm_ment *ment(const struct shm_ctx *c, shm_off off)
{
    return shm_at(c, off);
}

int shm_map_new(struct shm_ctx *c, shm_off *out)
{
    int e = shm_obj_alloc(c, SHM_OBJ_MAP, sizeof(struct shm_map), 0, out);
    if (e == SHM_OK)
        shm_obj_born(c, *out);
    return e;
}

int shm_pickled(struct shm_ctx *c, shm_off *map)
{
    struct shm_hdr *h = c->hdr;
    if ((*map = load_acq(&h->pickled)) != 0) /* pairs with ref_as() below */
        return SHM_OK;
    shm_off made;
    int e = shm_map_new(c, &made);
    if (e != SHM_OK)
        return e;
    shm_lock(c, &h->procs_lock);
    if (load_acq(&h->pickled) == 0) /* under procs_lock */
        shm_obj_ref_as(c, made, &h->pickled, made);
    shm_unlock(c, &h->procs_lock);
    shm_obj_unref(c, made);
    *map = load_acq(&h->pickled); /* set once */
    return SHM_OK;
}

/* At the last unref. */
void shm_map_free(struct shm_ctx *c, shm_off off)
{
    struct shm_map *m = map_at(c, off);
    shm_off buckets = m->buckets;
    for (uint64_t i = 0; i < m->nbuckets; i++) {
        shm_off *first = (shm_off *)shm_at(c, buckets) + i, at;
        while ((at = *first) != 0) {
            shm_val_drop(c, &ment(c, at)->value);
            shm_tx_begin(c);
            shm_tx_store64(c, first, ment(c, at)->next[m->gen]);
            shm_adopt(c, at);
            shm_tx_commit(c);
            shm_free(c, at);
        }
    }
    shm_tx_begin(c);
    shm_obj_gone(c, off);
    if (buckets)
        shm_adopt(c, buckets);
    shm_tx_commit(c);
    if (buckets)
        shm_free(c, buckets);
    shm_free(c, off);
}

/* FNV-1a, its bits mixed once more: the same in every process. */
static uint64_t hash_of(const uint8_t *key, uint32_t len)
{
    uint64_t h = 14695981039346656037ULL;
    for (uint32_t i = 0; i < len; i++)
        h = (h ^ key[i]) * 1099511628211ULL;
    return h ^ h >> 29;
}

/* The lock held. Where the link to the key's entry is, or the end of its chain; NULL: no table
 * yet. */
static shm_off *find(struct shm_ctx *c, struct shm_map *m, uint64_t hash, const uint8_t *key,
                     uint32_t len)
{
    if (m->nbuckets == 0)
        return NULL;
    shm_off *link = (shm_off *)shm_at(c, m->buckets) + (hash & (m->nbuckets - 1));
    while (*link) {
        struct shm_ment *e = ment(c, *link);
        if (e->hash == hash && e->len == len && memcmp(e->key, key, len) == 0)
            break;
        link = &e->next[m->gen];
    }
    return link;
}

/* The lock held. Twice as many chains; if there is no memory, they just get longer. */
static int grow(struct shm_ctx *c, struct shm_map *m)
{
    uint64_t n = m->nbuckets ? 2 * m->nbuckets : FIRST_BUCKETS;
    shm_off fresh, old = m->buckets;
    uint32_t to = 1 - m->gen;
    int e = shm_alloc(c, n * sizeof(shm_off), &fresh);
    if (e)
        return m->nbuckets ? SHM_OK : e;
    shm_off *b = shm_at(c, fresh);
    memset(b, 0, n * sizeof *b);
    for (uint64_t i = 0; i < m->nbuckets; i++)
        for (shm_off at = ((shm_off *)shm_at(c, old))[i]; at; at = ment(c, at)->next[m->gen]) {
            shm_off *head = &b[ment(c, at)->hash & (n - 1)];
            ment(c, at)->next[to] = *head;
            *head = at;
        }
    FAILPOINT("map.grow.linked");
    shm_tx_begin(c);
    shm_publish(c, fresh);
    if (old)
        shm_adopt(c, old);
    shm_tx_store64(c, &m->buckets, fresh);
    shm_tx_store64(c, &m->nbuckets, n);
    shm_tx_store32(c, &m->gen, to);
    shm_tx_commit(c);
    if (old)
        shm_free(c, old);
    return SHM_OK;
}

int shm_map_load(struct shm_ctx *c, shm_off off, const void *key, uint32_t len, struct shm_val *v)
{
    struct shm_map *m = map_at(c, off);
    int e = SHM_EAGAIN;
    shm_lock(c, &m->lock);
    shm_off *link = find(c, m, hash_of(key, len), key, len);
    if (link && *link)
        e = v ? shm_val_copy(c, v, &ment(c, *link)->value) : SHM_OK;
    shm_unlock(c, &m->lock);
    return e;
}

/* The lock held. A new entry, this M's, with v in it. */
static int entry(struct shm_ctx *c, uint64_t hash, const void *key, uint32_t len,
                 const struct shm_val *v, shm_off *out)
{
    int e = shm_alloc(c, sizeof(struct shm_ment) + len, out);
    if (e)
        return e;
    struct shm_ment *n = ment(c, *out);
    *n = (struct shm_ment){.hash = hash, .len = len, .value = *v};
    memcpy(n->key, key, len);
    return SHM_OK;
}

/* The lock held. v is moved in, *old is what was there, the caller's. */
static void replace(struct shm_ctx *c, struct shm_val *slot, const struct shm_val *v,
                    struct shm_val *old)
{
    *old = *slot;
    shm_tx_begin(c);
    shm_val_adopt(c, old);
    shm_val_publish(c, v);
    FAILPOINT("map.replace.published");
    shm_tx_val(c, slot, v);
    shm_tx_commit(c);
}

int shm_map_store(struct shm_ctx *c, shm_off off, const void *key, uint32_t len,
                  const struct shm_val *v, bool keep, struct shm_val *old)
{
    struct shm_map *m = map_at(c, off);
    uint64_t hash = hash_of(key, len);
    shm_off fresh;
    int e = SHM_OK;
    shm_lock(c, &m->lock);
    shm_off *link = find(c, m, hash, key, len);
    if (link && *link) {
        struct shm_val *slot = &ment(c, *link)->value;
        if (keep) {
            e = shm_val_copy(c, old, slot);
        } else {
            replace(c, slot, v, old);
        }
        shm_unlock(c, &m->lock);
        return e ? e : SHM_EAGAIN;
    }
    if (m->n >= m->nbuckets && (e = grow(c, m)) == SHM_OK)
        link = find(c, m, hash, key, len);
    if (e == SHM_OK && (e = entry(c, hash, key, len, v, &fresh)) == SHM_OK) {
        shm_tx_begin(c);
        shm_publish(c, fresh);
        shm_val_publish(c, v);
        shm_tx_store64(c, link, fresh);
        shm_tx_store64(c, &m->n, m->n + 1);
        shm_tx_commit(c);
    }
    shm_unlock(c, &m->lock);
    return e;
}

/* Whether two values are the same bytes with the same handles. Equal values need not be: who
 * compares has a copy of what it read. */
static bool same(const struct shm_ctx *c, const struct shm_val *a, const struct shm_val *b)
{
    uint32_t na, nb, nha = 0, nhb = 0;
    if ((a->tag == SHM_VAL_NONE) != (b->tag == SHM_VAL_NONE))
        return false;
    const uint8_t *pa = shm_val_bytes(c, a, &na), *pb = shm_val_bytes(c, b, &nb);
    const uint64_t *ha = a->tag == SHM_VAL_HEAP ? shm_bytes_handles(c, a->h.off, &nha) : NULL;
    const uint64_t *hb = b->tag == SHM_VAL_HEAP ? shm_bytes_handles(c, b->h.off, &nhb) : NULL;
    return na == nb && nha == nhb && (na == 0 || memcmp(pa, pb, na) == 0) &&
           (nha == 0 || memcmp(ha, hb, nha * sizeof *ha) == 0);
}

int shm_map_cas(struct shm_ctx *c, shm_off off, const void *key, uint32_t len,
                const struct shm_val *was, const struct shm_val *v, struct shm_val *old)
{
    struct shm_map *m = map_at(c, off);
    int e = SHM_EAGAIN;
    shm_lock(c, &m->lock);
    shm_off *link = find(c, m, hash_of(key, len), key, len);
    struct shm_val *slot = link && *link ? &ment(c, *link)->value : NULL;
    if (slot && same(c, slot, was)) {
        replace(c, slot, v, old);
        e = SHM_OK;
    }
    shm_unlock(c, &m->lock);
    return e;
}

int shm_map_delete(struct shm_ctx *c, shm_off off, const void *key, uint32_t len,
                   struct shm_val *old)
{
    struct shm_map *m = map_at(c, off);
    int e = SHM_EAGAIN;
    shm_off at = 0;
    shm_lock(c, &m->lock);
    shm_off *link = find(c, m, hash_of(key, len), key, len);
    if (link && *link) {
        at = *link;
        *old = ment(c, at)->value;
        shm_tx_begin(c);
        shm_adopt(c, at);
        shm_val_adopt(c, old);
        shm_tx_store64(c, link, ment(c, at)->next[m->gen]);
        shm_tx_store64(c, &m->n, m->n - 1);
        shm_tx_commit(c);
        e = SHM_OK;
    }
    shm_unlock(c, &m->lock);
    if (at)
        shm_free(c, at);
    return e;
}

int shm_map_each(struct shm_ctx *c, shm_off off,
                 int (*fn)(void *arg, const uint8_t *key, uint32_t len, const struct shm_val *v),
                 void *arg)
{
    struct shm_map *m = map_at(c, off);
    int e = SHM_OK;
    shm_lock(c, &m->lock);
    for (uint64_t i = 0; i < m->nbuckets && !e; i++)
        for (shm_off at = ((shm_off *)shm_at(c, m->buckets))[i]; at && !e;
             at = ment(c, at)->next[m->gen])
            e = fn(arg, ment(c, at)->key, ment(c, at)->len, &ment(c, at)->value);
    shm_unlock(c, &m->lock);
    return e;
}
