/* array.c — large bytes that are shared instead of copied: the memory behind arrays.
 *
 * One block: a counted object, then its bytes. Who has a handle may read them; whether anybody may
 * write is agreed on by the kind of the handle (_core/buffer.c), not here. From the moment a second
 * process has the handle nothing here changes any more but the count, so there is no lock.
 * Above 32 KiB the block is a run of pages of its own (heap.c), which the last handle gives
 * back. */
#include "internal.h"

int shm_array_new(struct shm_ctx *c, uint64_t bytes, shm_off *off)
{
    if (bytes > c->hdr->heap_bytes) { /* also if it is more than any allocation can be */
        c->wanted = bytes;
        return SHM_ENOMEM;
    }
    int e = shm_obj_alloc(c, SHM_OBJ_ARRAY, sizeof(struct shm_array), bytes, off);
    if (e)
        return e;
    ((struct shm_array *)shm_at(c, *off))->bytes = bytes;
    shm_obj_born(c, *off);
    return SHM_OK;
}
