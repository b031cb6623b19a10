/* atomic.h — the one file that spells memory orders.
 *
 * Every shared word is declared `_Atomic` and touched only through these names, so that each access
 * says its order where it stands and a model checker can replace this file. Orders stand on the
 * access, never in a fence: ThreadSanitizer does not see fences. A bare `x++` on an `_Atomic` (a
 * silent seq_cst) is not used anywhere. */
#ifndef SHM_ATOMIC_H
#define SHM_ATOMIC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define load_rlx(p) atomic_load_explicit((p), memory_order_relaxed)
#define load_acq(p) atomic_load_explicit((p), memory_order_acquire)
#define load_seq(p) atomic_load_explicit((p), memory_order_seq_cst)
#define store_rlx(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define store_rel(p, v) atomic_store_explicit((p), (v), memory_order_release)
#define store_seq(p, v) atomic_store_explicit((p), (v), memory_order_seq_cst)
#define xchg_acqrel(p, v) atomic_exchange_explicit((p), (v), memory_order_acq_rel)
#define xchg_seq(p, v) atomic_exchange_explicit((p), (v), memory_order_seq_cst)
#define add_rlx(p, v) atomic_fetch_add_explicit((p), (v), memory_order_relaxed)
#define add_acqrel(p, v) atomic_fetch_add_explicit((p), (v), memory_order_acq_rel)
#define add_seq(p, v) atomic_fetch_add_explicit((p), (v), memory_order_seq_cst)
#define sub_acqrel(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_acq_rel)
#define or_seq(p, v) atomic_fetch_or_explicit((p), (v), memory_order_seq_cst)
#define and_seq(p, v) atomic_fetch_and_explicit((p), (v), memory_order_seq_cst)
/* `old` is a pointer to the expected value and receives what was found. */
#define cas_acqrel(p, old, v)                                                      \
    atomic_compare_exchange_strong_explicit((p), (old), (v), memory_order_acq_rel, \
                                            memory_order_acquire)
#define cas_seq(p, old, v)                                                         \
    atomic_compare_exchange_strong_explicit((p), (old), (v), memory_order_seq_cst, \
                                            memory_order_seq_cst)
#define cas_acq(p, old, v)                                                         \
    atomic_compare_exchange_strong_explicit((p), (old), (v), memory_order_acquire, \
                                            memory_order_acquire)
#define cas_rel(p, old, v)                                                         \
    atomic_compare_exchange_strong_explicit((p), (old), (v), memory_order_release, \
                                            memory_order_relaxed)

/* A counter that only its owner writes and others read: no locked instruction. */
#define own_add(p, v) store_rlx((p), load_rlx(p) + (v))

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
