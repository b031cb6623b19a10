/* code.c — the code table: content hash <-> small number, the same in every M.
 *
 * A continuation names a function or a code object by number; the number leads to the hash and to a
 * payload (what the binding needs to find the code: module, name, first line), so an M that meets
 * a number for the first time can look, compare the hash, and refuse other code under that name.
 *
 * The table only grows. Its region is 4096 bucket heads and then 65,536 entries of 32 bytes; entry
 * pages are committed as they are reached, payloads are heap blocks. Entries of a bucket are linked
 * newest first. Rejected: open addressing, which would want its whole index backed from the start
 * and moves entries when it grows.
 *
 * READING takes no lock: a head, once stored, leads to entries that never change again.
 * ADDING, under code_lock: 1 the entry, complete, in a slot nobody counts yet; 2 by tx, its payload
 * published and code_n raised; 3 after the commit, the head. The head is the only word a reader
 * starts from, and it is stored when nothing can be rolled back any more: a number that was seen
 * once is never given to other code. A death between 2 and 3 leaves an entry that no one finds; its
 * code gets a second number, and both lead to the same payload bytes. */
#include "internal.h"

#define BUCKETS 4096
#define PAGE 4096ULL

struct entry {
    uint8_t hash[16];
    shm_off payload;
    uint32_t len;
    uint32_t next; /* id, 0: the last */
};
static_assert(sizeof(struct entry) == 32 && PAGE % sizeof(struct entry) == 0,
              "no entry on two pages");
static_assert(BUCKETS * 4 % PAGE == 0, "entries begin at a page");

uint64_t shm_code_first_bytes(void)
{
    return BUCKETS * sizeof(uint32_t);
}
uint64_t shm_code_table_bytes(void)
{
    return shm_code_first_bytes() + SHM_MAX_CODE * sizeof(struct entry);
}

static struct entry *entry_at(struct shm_ctx *c, uint32_t id)
{
    return (struct entry *)shm_at(c, c->hdr->code_off + shm_code_first_bytes()) + id;
}

static _Atomic uint32_t *bucket_of(struct shm_ctx *c, const uint8_t hash[16])
{
    uint32_t k;
    memcpy(&k, hash, sizeof k);
    return (_Atomic uint32_t *)shm_at(c, c->hdr->code_off) + k % BUCKETS;
}

static uint32_t find(struct shm_ctx *c, const uint8_t hash[16])
{
    uint32_t id = load_acq(bucket_of(c, hash)); /* pairs with store_rel in add() */
    while (id && memcmp(entry_at(c, id)->hash, hash, 16) != 0)
        id = entry_at(c, id)->next;
    return id;
}

/* code_lock held. */
static int add(struct shm_ctx *c, const uint8_t hash[16], shm_off payload, size_t n, uint32_t *id)
{
    struct shm_hdr *h = c->hdr;
    uint32_t i = load_rlx(&h->code_n) + 1;
    if (i >= SHM_MAX_CODE)
        return SHM_EFULL;
    struct entry *en = entry_at(c, i);
    int e = shm_commit(c, shm_offof(c, en), sizeof *en);
    if (e)
        return e;
    memcpy(en->hash, hash, 16);
    en->payload = payload;
    en->len = (uint32_t)n;
    en->next = load_rlx(bucket_of(c, hash));
    shm_tx_begin(c);
    shm_publish(c, payload);
    shm_tx_store32(c, &h->code_n, i);
    shm_tx_commit(c);
    FAILPOINT("code.counted");
    store_rel(bucket_of(c, hash), i); /* publishes the entry; pairs with load_acq in find() */
    *id = i;
    return SHM_OK;
}

int shm_code_intern(struct shm_ctx *c, const uint8_t hash[16], const void *payload, size_t n,
                    uint32_t *id)
{
    *id = find(c, hash);
    if (*id)
        return SHM_OK;
    if (n > UINT32_MAX) {
        c->wanted = n;
        return SHM_ENOMEM;
    }
    shm_off block;
    int e = shm_alloc(c, n, &block);
    if (e)
        return e;
    if (n)
        memcpy(shm_at(c, block), payload, n);
    shm_lock(c, &c->hdr->code_lock);
    *id = find(c, hash); /* another M may have been first */
    bool ours = *id == 0;
    if (ours)
        e = add(c, hash, block, n, id);
    shm_unlock(c, &c->hdr->code_lock);
    if (e || !ours)
        shm_free(c, block);
    return e;
}

const void *shm_code_payload(struct shm_ctx *c, uint32_t id, size_t *n, uint8_t hash[16])
{
    /* Pairs with the store of code_n in add(): who has an id from a message has the entry too. */
    if (id == 0 || id > load_acq(&c->hdr->code_n))
        return NULL;
    const struct entry *en = entry_at(c, id);
    *n = en->len;
    memcpy(hash, en->hash, 16);
    if (unlikely(en->payload >= c->mapped || en->len > c->mapped - en->payload))
        return NULL; /* a watcher's look at a damaged table */
    return shm_at(c, en->payload);
}
