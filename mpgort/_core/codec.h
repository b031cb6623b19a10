/* codec.h — what frame.c, chain.c and the codec_*.c files share:
 * the format, the encoder, the decoder.
 *
 * THE FORMAT. A blob is `magic, BLOB_*, body`, and if that says so `pickle, its length (4 bytes)`.
 * The body is one value; a value is a tag byte and what the tag says follows. Numbers are
 * little-endian, counts are varints (seven bits a byte). Bit 7 of a tag, TAG_MEMO, says "remember
 * this one": the n-th remembered object is what TAG_REF n means later, so identity and cycles
 * inside one blob survive. Only an object that somebody else refers to as well (reference count >
 * 1) can be met twice, so only those are remembered. A container is made and remembered before its
 * items are read; what must be complete to exist (frozenset, range, slice) is remembered after, and
 * a reference to it from within is refused.
 *
 * TWO MODES. A continuation *moves*: what it holds afterwards must be what it held before, so an
 * object that somebody outside also holds is not copied (INV unobservable, encode.c), and what
 * cannot move pins the goroutine. A value *is copied*, as pickle copies; what cannot be is an
 * error. */
#ifndef MPGORT_CODEC_H
#define MPGORT_CODEC_H

#include "cpython.h"

struct enc;
/* buffer.c: which part of which Buffer some bytes are. */
#define CORE_BUFFER_MIN 65536
struct core_place {
    uint64_t word;
    Py_ssize_t start;
    bool readonly;
};
bool core_buffer_holds(const void *p, Py_ssize_t n);
/* 1: *at; 0: they are written with what holds them; -1: exception. *fresh: the new Buffer that is
 * to be filled with them, a new reference, or NULL. */
int core_buffer_place(struct enc *E, const void *p, Py_ssize_t n, bool readonly,
                      struct core_place *at, PyObject **fresh);
void core_buffer_fill(PyObject *buffer, const void *from); /* the GIL is free meanwhile */
PyObject *core_buffer_placed(struct core_words *W, struct core_place at, Py_ssize_t n);
/* The persistent id of a PickleBuffer, None: it stays in the pickle; NULL: exception. */
PyObject *core_buffer_id(struct enc *E, PyObject *pickle_buffer);
PyObject *core_buffer_from_id(PyObject *id, struct core_words *W);

/* ---- tags ------------------------------------------------------------------------------------ */

enum {
    TAG_NULL, /* an empty slot: unbound local, the NULL of a call; in frames only */
    TAG_NONE,
    TAG_TRUE,
    TAG_FALSE,
    TAG_ELLIPSIS,
    TAG_NOTIMPLEMENTED,
    TAG_INT16,
    TAG_INT32,
    TAG_INT64,
    TAG_INTBIG, /* n, n bytes two's complement */
    TAG_FLOAT,
    TAG_COMPLEX, /* 2 doubles */
    TAG_STR,     /* n, n bytes Latin-1 */
    TAG_STRW,    /* width 2 or 4, n, n code points */
    TAG_BYTES,
    TAG_BYTEARRAY,
    TAG_TUPLE,
    TAG_LIST,
    TAG_DICT,
    TAG_SET,
    TAG_FROZENSET,
    TAG_SLICE,
    TAG_RANGE,
    TAG_REF,     /* n: the n-th remembered */
    TAG_CONST,   /* n: co_consts[n] of the frame's code; in frames only */
    TAG_PICKLE,  /* n: the n-th of the blob's pickle */
    TAG_HANDLE,  /* kind byte, 8 bytes offset */
    TAG_GLOBAL,  /* id in the table of codes and names: a function or class by its name */
    TAG_MODULE,  /* name */
    TAG_SEQITER, /* type byte, index, sequence */
    TAG_RANGEITER,
    TAG_DICTITER, /* type byte, consumed, dict */
    TAG_REDUCED,  /* type byte, args tuple, state: builtin iterators by their own __reduce__ */
    TAG_CELL,
    TAG_CELLOF,    /* id of a named function, k: its k-th cell */
    TAG_DEQUE,     /* maxlen, n, items */
    TAG_ARRAY,     /* flags, number of its dtype, n, its name, n, dimensions, n, bytes or place */
    TAG_METHOD,    /* function, self */
    TAG_CMETHOD,   /* self, name */
    TAG_FUNCTION,  /* a local one: code id, closure, defaults, ... */
    TAG_OBJECT,    /* class, attributes: a plain instance */
    TAG_OBJECTD,   /* class, __dict__ as an object of its own */
    TAG_TRACEBACK, /* n, then file, name, line each */
    TAG_EXC,       /* class, args, cause, context, ... */
    TAG_GEN,       /* a frame: see frame.c */
    TAG_ASEND,
    TAG_ATHROW,
    TAG_COROWRAP,
    TAG_PARK, /* the park request that the chain stands at */
    TAG_COUNT,
    TAG_SMALL = 0x40, /* ..0x7f: the ints -5..58 */
    TAG_MEMO = 0x80,
};
#define SMALL_MIN (-5)
#define SMALL_MAX 58
#define BLOB_MAGIC_CHAIN (0xC0 | (PY_MINOR_VERSION & 0xf)) /* frames are bound to the version */
#define BLOB_MAGIC_VALUE (0xA0 | (PY_MINOR_VERSION & 0xf))
enum { BLOB_BARE = 0, BLOB_PICKLE = 1, BLOB_PICKLE_HANDLES = 2 /* with handles in it */ };
#define OFFSET_MASK ((1ull << 56) - 1) /* of a handle word: kind << 56 | offset */
#define DEPTH_MAX 3000                 /* nesting of values and frames in one blob */

/* ---- code.c ---------------------------------------------------------------------------------- */

enum { POINT_CREATED = 0, POINT_AWAIT = 1, POINT_YIELD = 2 };

struct resume_point { /* Point of _bytecode.py, which explains it */
    int next, forward, line, how;
    uint16_t depth;
    const char *locals, *stack; /* a kind per slot */
};

#define SHELL_POOL 16

struct code_info {          /* hangs on the code object (co_extra), made once, never freed */
    PyFunctionObject *func; /* template: code, globals, names; all rebuilt frames share it */
    PyCodeObject *code;     /* func's */
    PyObject *globals;      /* func's */
    uint32_t id, epoch;     /* in core_codes, valid while epoch == codes_epoch */
    uint8_t hash[16];
    PyObject *payload;          /* bytes for core_codes.intern */
    uint64_t known_id, version; /* of what code_by_value() has found nothing new in */
    int n_points;
    struct resume_point *points;
    int16_t *point_at;   /* by code unit: index in points, or -1 */
    uint8_t *how_at;     /* by slot: where in type_hows its type was found last */
    PyObject *spec;      /* owns what the points point into */
    uint32_t const_mask; /* table of co_consts by address: index + 1, 0 empty */
    uint16_t *const_at;
    PyGenObject
        *shells[SHELL_POOL]; /* dropped coroutines, COMPLETED and empty, to be filled again */
    int n_shells;
};
extern uint32_t codes_epoch;
extern Py_ssize_t code_extra_at;

/* The info of a code object run with these globals; NULL with an exception set, or without one
 * where such frames do not move (*why says why). */
struct code_info *code_info_of(PyCodeObject *code, PyObject *globals, const char **why);
/* The same without asking for what is not known yet: NULL. */
static inline struct code_info *code_info_known(PyCodeObject *code)
{
    return code_extra(code, code_extra_at);
}
/* Its number in the shared table; 0 with an exception set. */
SHM_COLD uint32_t code_info_intern(struct code_info *ci);
static inline uint32_t code_info_id(struct code_info *ci)
{
    return likely(ci->epoch == codes_epoch) ? ci->id : code_info_intern(ci);
}
/* Whether a function with this code goes by value: its program's workers have other globals for it,
 * or it names some that they have not (_byvalue.py). 1, 0, -1: exception. */
int code_by_value(struct code_info *ci);
/* Whether the workers of the current program may have what this module was before a reload; the
 * same answers. */
int module_is_new(PyObject *module);
/* What the workers of the current program have as __main__,
 * for _code.py and _pickle.py; borrowed. */
PyObject *codes_known(void);
/* The code with this number, located or built; NULL with BadContinuation or CodeMismatch. */
struct code_info *code_info_by_id(uint32_t id);
/* A function or class by (module, qualified name); 0 without exception:
 * not found under its name. */
uint32_t global_id(PyObject *o);
PyObject *global_by_id(uint32_t id);
/* If o is the value of a global variable of a module, its number as such;
 * 0 without exception: not. */
uint32_t variable_id(PyObject *o);
uint32_t variable_known(PyObject *o);      /* the same, but only what was asked for before: cheap */
PyObject *code_payload_tuple(uint32_t id); /* the unmarshalled payload */
int core_code_init(PyObject *mod);
int core_codes_local_init(PyObject *mod); /* codes_local.c */

/* ---- encoding -------------------------------------------------------------------------------- */

struct memo_entry {
    PyObject *o;
    Py_ssize_t visits; /* references met by the tags */
    Py_ssize_t inner;  /* references met by the pickler */
    uint32_t frame;    /* where it was first met: frame number and slot, for the reason */
    uint16_t slot;
    uint8_t flags;
};
enum {
    MEMO_CHECK = 1,   /* mutable, or leads to what is: references from outside pin */
    MEMO_OPEN = 2,    /* being written; cannot be referred to until complete */
    MEMO_PICKLED = 8, /* E->pickled has one more reference to it */
    MEMO_INNER = 16,  /* met inside the pickle alone; E->inner has one more reference to it */
    MEMO_UNNAMED = 4, /* cannot go by the name of a variable: a cell, an iterator */
};

struct enc {
    uint8_t *end,
        *start; /* of this blob; the write pointer itself travels in a register: see codec.c */
    struct core_enc *out;
    bool moving; /* a continuation; else a value */
    int status, depth;
    PyObject *root, *park;
    bool park_met;
    uint32_t
        mutables; /* how many mutable objects were met so far: tells whether a tuple holds any */
    /* memo: entries in order, and a table by address. An index of 0 is an empty place. */
    struct memo_entry *memo;
    uint32_t n_memo, memo_cap;
    struct {
        uint32_t epoch, index;
    } *table; /* by address: index in memo; a place of another epoch is empty */
    uint32_t table_mask, table_epoch;
    uint64_t seen; /* a bit by address of each that is remembered: most are met once */
    PyGenObject **gens;
    uint32_t n_gens, gens_cap;
    uint32_t cur_frame;
    uint16_t cur_slot;
    PyObject *pickled; /* list of the objects for the one pickle, or NULL */
    PyObject *inner;   /* list of the mutable objects met inside of those, or NULL */
    Py_ssize_t n_top;  /* how many of `pickled` the pickler has come to */
    struct pickled_at {
        uint32_t frame;
        uint16_t slot;
    } *pickled_at; /* where each of `pickled` was met */
    Py_ssize_t pickled_cap;
    Py_ssize_t refused;  /* number of the pickled object that is known to fail, or -1 */
    PyObject *by_pickle; /* set of addresses: objects that the pickle has to hold (a further try) */
    PyObject *ghosts;    /* list of dead frames met in tracebacks, or NULL */
    PyObject *unfilled;  /* list of arrays and the Buffers that are to have their bytes, or NULL */
    bool words;          /* the pickle names handles (nil ones among them) */
    bool again;          /* the try failed, but by_pickle or the table of names has grown */
    bool located;        /* path begins with a frame's local */
    struct enc *next;    /* of the free ones */
    PyObject *cause;     /* the exception behind `why`, or NULL */
    char path[240], why[200], refusal[200], refused_path[160]; /* the latter two of `refused` */
};

/* All enc_* take the write pointer and return it advanced, or NULL: E->status says why. */
SHM_COLD uint8_t *enc_grow(struct enc *E, uint8_t *p, size_t n);
uint8_t *enc_limit(struct enc *E); /* where it has to ask for more room */
int enc_memo_grow(struct enc *E);
#define ROOM(n)                                                                                \
    do {                                                                                       \
        if (unlikely((size_t)(E->end - p) < (size_t)(n)) && (p = enc_grow(E, p, (n))) == NULL) \
            return NULL;                                                                       \
    } while (0)
uint8_t *enc_value(struct enc *E, uint8_t *p, PyObject *o);
uint8_t *enc_long(struct enc *E, uint8_t *p, PyObject *o);      /* with room for 32 bytes */
uint8_t *enc_gen(struct enc *E, uint8_t *p, PyGenObject *g);    /* frame.c */
uint8_t *enc_other(struct enc *E, uint8_t *p, PyObject *o);     /* codec_types.c */
uint8_t *enc_rangeiter(struct enc *E, uint8_t *p, PyObject *o); /* codec_iter.c */
uint8_t *enc_iterator(struct enc *E, uint8_t *p, PyObject *o);  /* codec_iter.c: HOW_ITER */
uint8_t *enc_numpy(struct enc *E, uint8_t *p, PyObject *o);     /* codec_array.c */
void enc_arrays_fill(struct enc *E);
uint8_t *enc_function(struct enc *E, uint8_t *p, PyObject *o); /* codec_call.c, as these three */
uint8_t *enc_method(struct enc *E, uint8_t *p, PyObject *o);
uint8_t *enc_cmethod(struct enc *E, uint8_t *p, PyObject *o);
uint8_t *enc_cell(struct enc *E, uint8_t *p, PyObject *o);
uint8_t *enc_traceback(struct enc *E, uint8_t *p, PyObject *tb); /* codec_exc.c */
uint8_t *enc_exception(struct enc *E, uint8_t *p, PyObject *o);  /* codec_exc.c */
uint8_t *enc_pickled(struct enc *E, uint8_t *p, PyObject *o);    /* codec_pickle.c */
int enc_pickle_all(struct enc *E, uint8_t **p);
/* Takes a handle's word (kind << 56 | offset) into the blob's list of them;
 * 0 with an exception set. */
uint64_t enc_handle_word(struct enc *E, PyObject *o, const struct core_handle_type *h);
uint8_t *enc_handle(struct enc *E, uint8_t *p, PyObject *o, const struct core_handle_type *h);
int enc_handles_of(struct core_enc *out, const struct core_enc *part); /* part's are out's, too */
int enc_run(struct enc *E, PyObject *root, uint8_t magic); /* encode.c: one blob into E->out */
struct enc *enc_take(struct core_enc *out, bool moving);
void enc_give(struct enc *E);
SHM_COLD uint8_t *enc_fail(struct enc *E,
                           int status); /* with the exception set: pinned or an error by it */
/* Whether o was met before: then the reference is written at *p. Else it is remembered, and its tag
 * needs TAG_MEMO. Only for objects with a reference count above 1. */
enum { MET_FIRST, MET_AGAIN, MET_FAILED };
#define MEMO_FEW 8 /* up to so many are looked through; the table is made when there are more */
static inline uint64_t seen_bit(PyObject *o)
{
    return 1ull << ((uintptr_t)o >> 4 & 63);
}
int enc_met(struct enc *E, uint8_t **p, uint32_t i); /* the i-th remembered, again */
int enc_meet_many(struct enc *E, uint8_t **p, PyObject *o, uint8_t flags, uint32_t *at);
static inline int enc_meet(struct enc *E, uint8_t **p, PyObject *o, uint8_t flags, uint32_t *at)
{
    uint32_t n = E->n_memo;
    uint64_t bit = seen_bit(o);
    if (n >= MEMO_FEW)
        return enc_meet_many(E, p, o, flags, at);
    if (E->seen & bit)
        for (uint32_t i = 0; i < n; i++)
            if (E->memo[i].o == o)
                return enc_met(E, p, i);
    *at = n;
    E->n_memo = n + 1;
    E->seen |= bit;
    E->memo[n] = (struct memo_entry){o, 1, 0, E->cur_frame, E->cur_slot, flags};
    return MET_FIRST;
}
#define MEET(o, flags, memo, at)                             \
    do {                                                     \
        (memo) = 0;                                          \
        if (Py_REFCNT(o) > 1) {                              \
            int met_ = enc_meet(E, &p, (o), (flags), &(at)); \
            if (met_ != MET_FIRST)                           \
                return met_ == MET_AGAIN ? p : NULL;         \
            (memo) = TAG_MEMO;                               \
        }                                                    \
    } while (0)
/* A mutable object that others refer to as well may be the value of a module's variable, known from
 * an earlier try: then it goes by that name. */
uint8_t *enc_variable(struct enc *E, uint8_t *p, uint32_t id);
#define BY_NAME(o)                                                                            \
    do {                                                                                      \
        uint32_t name_ = E->moving && Py_REFCNT(o) > 1 ? variable_known((PyObject *)(o)) : 0; \
        if (unlikely(name_ != 0))                                                             \
            return enc_variable(E, p, name_);                                                 \
    } while (0)
SHM_COLD uint8_t *enc_heavy(struct enc *E);
SHM_COLD uint8_t *enc_fail_by_exception(struct enc *E); /* blames the object, if it can be blamed */
int enc_dropped_with(struct enc *E, PyGenObject *o);    /* frame.c: has a part in the drop */
SHM_COLD uint8_t *enc_refuse(struct enc *E, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
SHM_COLD void enc_path(struct enc *E, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
struct memo_entry *enc_find(struct enc *E, PyObject *o); /* NULL: not remembered */
int enc_note(struct enc *E, PyObject *o, uint8_t flags); /* remembers it, without a tag */
Py_ssize_t enc_inner_refs(struct enc *E, PyObject *o);   /* codec_pickle.c */
/* codec_pickle.c: references to o from x, and from what below x only one object has; counted by the
 * collector's own means: a type's __reduce__ need not show each. */
Py_ssize_t enc_refs_from(PyObject *x, PyObject *o, bool frames);
bool enc_must_pickle(struct enc *E, PyObject *o);
SHM_COLD void enc_locate(struct enc *E, uint32_t frame, int slot);
Py_ssize_t enc_ghost_refs(struct enc *E, PyObject *o); /* codec_exc.c */
const char *enc_kind_name(PyObject *o);                /* "an open file (_io.TextIOWrapper)" */
/* By which a class says how it is pickled: interned strings, __reduce_ex__ and so on
 * (codec_types.c). */
enum { N_PICKLING_NAMES = 6 };
extern PyObject *pickling_names[N_PICKLING_NAMES];
const struct core_handle_type *core_handle_type_of(uint8_t kind);
PyObject *chain_park(PyObject *root);   /* the request it stands at; borrowed, NULL: none */
uint32_t closure_owner(PyObject *fn);   /* the number of a named function with cells, or 0 */
bool is_iterator_type(PyTypeObject *t); /* codec_iter.c */
bool is_numpy_type(PyTypeObject *t);    /* codec_array.c */
bool has_weakrefs(PyObject *o);         /* codec_types.c */
PyObject *awaited_by(PyObject *o);      /* codec_iter.c: through asend, athrow, coroutine_wrapper */
PyFunctionObject *core_ended_function(int kind);

static inline uint32_t hash_address(const void *p)
{
    return (uint32_t)(((uint64_t)(uintptr_t)p >> 4) * 0x9E3779B97F4A7C15ull >> 32);
}

/* codec_handle.c: how objects of a type are written. */
enum how {
    HOW_OTHER, /* enc_other() looks on */
    HOW_NONE,
    HOW_INT,
    HOW_STR,
    HOW_FLOAT,
    HOW_BOOL,
    HOW_BYTES,
    HOW_TUPLE,
    HOW_MUTABLE, /* list, dict, set, bytearray */
    HOW_FROZENSET,
    HOW_GEN,
    HOW_HANDLE,
    HOW_RANGEITER,
    HOW_CELL,
    HOW_ITER,  /* another iterator, deque or awaitable: enc_iterator() */
    HOW_NUMPY, /* enc_numpy() looks on */
    HOW_PARK,
};
#define N_TYPE_HOWS 128
struct type_how {
    PyTypeObject *type;
    const struct core_handle_type *handle; /* of HOW_HANDLE */
    uint8_t how;
};
extern struct type_how type_hows[N_TYPE_HOWS];
const struct type_how *type_how_ask(PyTypeObject *type, uint32_t i);
/* Valid until the next question. */
static inline const struct type_how *how_of(PyTypeObject *type)
{
    uint32_t i = hash_address(type) % N_TYPE_HOWS;
    return likely(type_hows[i].type == type) ? &type_hows[i] : type_how_ask(type, i);
}
/* The same in a place that mostly has an object of one type: *at is where it was found last. What
 * comes next does not wait for the object then. */
static inline const struct type_how *how_again(PyTypeObject *type, uint8_t *at)
{
    const struct type_how *k = &type_hows[*at];
    if (unlikely(k->type != type)) {
        k = how_of(type);
        *at = (uint8_t)(k - type_hows);
    }
    return k;
}

static inline uint8_t *put_varint(uint8_t *p, uint64_t v)
{
    while (v >= 0x80) {
        *p++ = (uint8_t)v | 0x80;
        v >>= 7;
    }
    *p++ = (uint8_t)v;
    return p;
}
#define VARINT_MAX 10

/* The interpreter has one object for each of these: they need no identity of ours. */
static inline bool is_interned_int(long v)
{
    return v >= -5 && v <= 256;
}
static inline uint8_t *put_interned_int(uint8_t *p, long v)
{
    if (v <= SMALL_MAX) {
        *p++ = (uint8_t)(TAG_SMALL + (v - SMALL_MIN));
        return p;
    }
    int16_t w = (int16_t)v;
    *p++ = TAG_INT16;
    memcpy(p, &w, 2);
    return p + 2;
}

/* The request that the chain stands at. Who does not know it (park NULL) means the one yielded. */
static inline bool enc_is_park(struct enc *E, PyObject *o)
{
    if (!Py_IS_TYPE(o, &CorePark_Type))
        return false;
    if (E->park == NULL && ((CorePark *)o)->state == 1)
        E->park = o;
    E->park_met |= o == E->park;
    return o == E->park;
}

/* ---- decoding -------------------------------------------------------------------------------- */

struct dec {
    const uint8_t *p, *end;
    bool moving;
    int depth;
    PyObject **memo; /* strong references */
    uint32_t n_memo, memo_cap;
    PyObject *memo_few[16];
    PyObject *pickled; /* list, or NULL */
    struct built {
        PyGenObject *g; /* strong */
        int8_t state;   /* what it becomes when the whole blob is good */
    } *gens;
    uint32_t n_gens, gens_cap;
    struct built gens_few[8];
    struct core_words *words;
    PyObject *owner; /* the function that the last TAG_CELLOF named; borrowed from its module */
    CorePark *park;
};

int dec_begin(struct dec *D, const uint8_t *p, size_t n, struct core_words *W, uint8_t magic);
/* Makes the handle of a word that W still has. */
PyObject *dec_handle_word(struct core_words *W, uint8_t kind, uint64_t off);
PyObject *dec_end(struct dec *D, PyObject *root); /* takes over root; commits or undoes */
PyObject *dec_str(struct dec *D);
int dec_dict_items(struct dec *D, PyObject *o, bool attributes);

PyObject *dec_value(struct dec *D); /* new reference, or NULL with an exception */
PyObject *dec_gen(struct dec *D, bool memo);
PyObject *dec_other(struct dec *D, int tag, bool memo);
PyObject *dec_handle(struct dec *D, bool memo);
PyObject *dec_function(struct dec *D, bool memo); /* codec_call.c, to dec_cell_of */
PyObject *dec_method(struct dec *D, bool memo);
PyObject *dec_cmethod(struct dec *D, bool memo);
PyObject *dec_cell(struct dec *D, bool memo);
PyObject *dec_cell_of(struct dec *D);
PyObject *dec_array(struct dec *D, bool memo); /* codec_array.c */
PyObject *dec_deque(struct dec *D, bool memo); /* codec_iter.c, to dec_awaitable */
PyObject *dec_seqiter(struct dec *D, bool memo);
PyObject *dec_rangeiter(struct dec *D, bool memo);
PyObject *dec_dictiter(struct dec *D, bool memo);
PyObject *dec_reduced(struct dec *D, bool memo);
PyObject *dec_awaitable(struct dec *D, int tag, bool memo);
PyObject *dec_exception(struct dec *D, bool memo);
/* codec_pickle.c: the list of objects */
PyObject *dec_pickle(const char *p, size_t n, bool handles, struct core_words *W);
PyObject *dec_traceback(struct dec *D, bool memo);
SHM_COLD void *dec_bad(const char *fmt, ...); /* BadContinuation, returns NULL */
SHM_COLD void *dec_blame(void); /* the same of an exception that the value's own making raised */
int dec_varint(struct dec *D, uint64_t *v);
int dec_count(struct dec *D, size_t each, Py_ssize_t *n); /* bounded by the bytes that are left */
/* o may be NULL: then it is set with dec_complete(). at may be NULL. */
int dec_remember(struct dec *D, PyObject *o, uint32_t *at);
void dec_complete(struct dec *D, uint32_t at, PyObject *o);

/* ---- shared by name -------------------------------------------------------------------------- */

extern PyObject *core_errors;           /* module mpgort._errors */
extern PyObject *core_pickle;           /* module mpgort._pickle */
extern PyObject *core_code_py;          /* module mpgort._code */
extern PyObject *core_exc_py;           /* module mpgort._exc */
PyObject *core_error(const char *name); /* a class of mpgort._errors, borrowed */
extern bool frames_ok;
extern char frames_reason[160];
extern bool fast_forward_on;
bool core_layouts_ok(char *why, size_t n); /* codec_iter.c */
int core_types_init(void);                 /* codec_types.c */
int core_iters_init(void);                 /* codec_iter.c */
int core_expose_init(PyObject *mod);       /* expose.c: the private Python interface */

#endif
