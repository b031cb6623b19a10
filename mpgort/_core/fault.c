/* fault.c — a worker's last words: the Python stack where a signal has killed it.
 *
 * What a segmentation fault, abort(), a bus error, a fatal Python error leaves in the M's slot is
 * found there by its reaper (shm/reap.c), who gives it to the MDied of the goroutine that ran. The
 * segment outlives the process, so nothing has to be opened, inherited, sent or cleaned up, and the
 * text has the room that the slot has for it (SHM_WORDS_BYTES).
 *
 * Rejected: faulthandler with a pipe or memory file for its text. It has one file, which a program
 * that uses it wants for itself; it would cost a descriptor for each worker in the keeper and in
 * what a goroutine forks; and it would name the frames of this runtime below the goroutine's. What
 * it knows of frames, cpython.h knows too.
 *
 * THE HANDLER stands before whoever was there, and calls him when it has written:
 *   - faulthandler, enabled before (PYTHONFAULTHANDLER, a main that enables it), has his say too,
 *     in its own file. Enabled later it stands before this one, and raises the signal again when it
 *     has put back what was there: this one. Only a faulthandler.disable() of one that was there
 *     before takes this one away with it: then there are no last words.
 *   - a handler that returns and means to go on (a JIT, a Java machine) leaves no words: they are
 *     taken back when the signal is neither pending nor has lost its handler.
 *   - nobody there: the default is put back and the signal raised again. It is blocked in here, so
 *     it strikes as this returns, and a core dump shows the place of the fault.
 * It reads memory and writes to the slot; no call in it allocates or locks. A worker that dies of
 * what it has done to its memory may have no frames that can be read: a fault while they are read
 * ends the reading (`out`), and what was written stays.
 *
 * A stack that has overflowed has no room for a handler, so the M's thread has another stack for
 * it.
 *
 * A child that a goroutine forks inherits the handler, and the M's slot by its number. It is nobody
 * (pid). */
#include "cpython.h"
#include "proc.h"
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NAME_CHARS 256

static const int fatal[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
enum { NFATAL = sizeof fatal / sizeof *fatal };

static struct sigaction before[NFATAL];
static sigset_t all_fatal;
static bool installed;
static uint8_t stack[64 << 10];
static sigjmp_buf out;

static struct {
    struct shm_m *_Atomic m; /* NULL: this process is no worker */
    pid_t pid;
    PyThreadState *ts; /* of the thread with the M's loop */
    Frame *base;       /* its frame below all goroutines */
    _Atomic pid_t writer;
} M;

/* ---- writing --------------------------------------------------------------------------------- */

struct pen {
    char *at, *end;
};

static void put_char(struct pen *p, uint32_t ch)
{
    uint8_t b[4];
    int n = 0;
    if (ch < 0x80) {
        b[n++] = (uint8_t)(ch < 0x20 || ch == 0x7f ? '?' : ch);
    } else if (ch < 0x800) {
        b[n++] = (uint8_t)(0xc0 | ch >> 6);
    } else if (ch < 0x10000) {
        b[n++] = (uint8_t)(0xe0 | ch >> 12);
        b[n++] = (uint8_t)(0x80 | (ch >> 6 & 0x3f));
    } else {
        b[n++] = (uint8_t)(0xf0 | ch >> 18);
        b[n++] = (uint8_t)(0x80 | (ch >> 12 & 0x3f));
        b[n++] = (uint8_t)(0x80 | (ch >> 6 & 0x3f));
    }
    if (ch >= 0x80)
        b[n++] = (uint8_t)(0x80 | (ch & 0x3f));
    if (p->end - p->at >= n)
        memcpy(p->at, b, (size_t)n);
    p->at += n; /* beyond the end it counts on: the frame does not fit */
}

static void put_text(struct pen *p, const char *s)
{
    size_t n = strlen(s);
    if (p->end - p->at >= (ptrdiff_t)n)
        memcpy(p->at, s, n);
    p->at += n;
}

static void put_number(struct pen *p, unsigned long n)
{
    char b[24], *s = b + sizeof b;
    *--s = 0;
    do
        *--s = (char)('0' + n % 10);
    while ((n /= 10) != 0);
    put_text(p, s);
}

static void put_str(struct pen *p, PyObject *s)
{
    if (s == NULL || !PyUnicode_Check(s)) {
        put_text(p, "?");
        return;
    }
    int kind = (int)PyUnicode_KIND(s);
    const void *data = PyUnicode_DATA(s);
    Py_ssize_t n = PyUnicode_GET_LENGTH(s);
    for (Py_ssize_t i = 0; i < n && i < NAME_CHARS; i++) {
        uint32_t ch = PyUnicode_READ(kind, data, i);
        put_char(p, ch >= 0xd800 && ch < 0xe000 ? '?' : ch);
    }
    if (n > NAME_CHARS)
        put_text(p, "...");
}

/* As _traceback.py writes the frames of a goroutine. */
static void put_frame(struct pen *p, Frame *f)
{
    PyCodeObject *code = CODE(f);
    put_str(p, code->co_qualname);
    put_text(p, "(...)\n\t");
    put_str(p, code->co_filename);
    put_text(p, ":");
    int line = PyCode_Addr2Line(code, _PyInterpreterFrame_LASTI(f) * (int)sizeof(_Py_CODEUNIT));
    put_number(p, line > 0 ? (unsigned long)line : 0);
    put_text(p, "\n");
}

/* The frames of the thread that has met the signal; of the M's, if that one runs no Python (it is a
 * C library's: whoever had it made is most likely there). */
static void write_words(struct shm_m *m)
{
    static const char more[] = "...\n";
    PyThreadState *ts = PyGILState_GetThisThreadState();
    struct pen p = {m->words, m->words + sizeof m->words - sizeof more};
    if (ts == NULL)
        ts = M.ts;
    if (ts != M.ts) {
        put_text(&p, "thread ");
        put_number(&p, (unsigned long)syscall(SYS_gettid));
        put_text(&p, " of the process:\n");
    }
    for (Frame *f = frame_of_thread(ts); f != NULL && f != M.base;
         f = frame_complete(f->previous)) {
        struct pen next = p;
        put_frame(&next, f);
        if (next.at > next.end) {
            memcpy(p.at, more, sizeof more - 1);
            p.at += sizeof more - 1;
            store_rel(&m->words_n, (uint32_t)(p.at - m->words)); /* as below */
            return;
        }
        p = next;
        /* Each frame counts when it is whole; pairs with words_of() in reap.c, after the death. */
        store_rel(&m->words_n, (uint32_t)(p.at - m->words));
    }
}

/* ---- the handler ----------------------------------------------------------------------------- */

static void on_fatal(int sig, siginfo_t *info, void *where);

/* Whether the signal will strike when the handler returns, or a handler has made way for it. */
static bool is_the_end(int sig)
{
    sigset_t pending;
    struct sigaction now;
    if (sigpending(&pending) == 0 && sigismember(&pending, sig))
        return true;
    return sigaction(sig, NULL, &now) == 0 && now.sa_sigaction != on_fatal;
}

void core_signal_pass(const struct sigaction *b, int sig, siginfo_t *info, void *where)
{
    struct sigaction dfl = {.sa_handler = SIG_DFL};
    if (b->sa_flags & SA_SIGINFO)
        b->sa_sigaction(sig, info, where);
    else if (b->sa_handler != SIG_DFL && b->sa_handler != SIG_IGN)
        b->sa_handler(sig);
    else if (b->sa_handler == SIG_DFL || info->si_code > 0) { /* the kernel's own is not ignored */
        sigaction(sig, &dfl, NULL);
        raise(sig);
    }
}

static void on_fatal(int sig, siginfo_t *info, void *where)
{
    int saved = errno;
    pid_t tid = (pid_t)syscall(SYS_gettid), none = 0;
    if (load_rlx(&M.writer) == tid && getpid() == M.pid) /* own word: this thread was writing */
        siglongjmp(out, 1);
    struct shm_m *m = load_acq(&M.m); /* pairs with core_fault_arm() */
    bool mine = m != NULL && getpid() == M.pid && cas_acqrel(&M.writer, &none, tid);
    if (mine) {
        store_rlx(&m->words_n, 0); /* own words, until this process is dead */
        store_rel(&m->words_sig, (uint32_t)sig);
        if (sigsetjmp(out, 1) == 0) {
            pthread_sigmask(SIG_UNBLOCK, &all_fatal, NULL);
            write_words(m);
        }
        pthread_sigmask(SIG_BLOCK, &all_fatal, NULL);
        store_rel(&M.writer, 0); /* pairs with the CAS above */
    }
    int i = 0;
    while (i < NFATAL - 1 && fatal[i] != sig)
        i++;
    core_signal_pass(&before[i], sig, info, where);
    if (mine && !is_the_end(sig))
        store_rel(&m->words_sig, 0); /* as above */
    errno = saved;
}

/* ---- a worker's ------------------------------------------------------------------------------ */

/* The calling thread is going to run m's loop,
 * and no goroutine has a frame below the present one. */
void core_fault_arm(struct shm_m *m)
{
    stack_t old, mine = {.ss_sp = stack, .ss_size = sizeof stack};
    M.pid = getpid();
    M.ts = PyThreadState_Get();
    M.base = frame_of_thread(M.ts);
    store_rlx(&M.writer, 0);
    store_rel(&M.m, m); /* after the above; pairs with on_fatal() */
    if (sigaltstack(NULL, &old) == 0 && old.ss_flags & SS_DISABLE)
        sigaltstack(&mine, NULL);
    if (installed) /* by a worker that this process was forked from */
        return;
    installed = true;
    sigemptyset(&all_fatal);
    for (int i = 0; i < NFATAL; i++)
        sigaddset(&all_fatal, fatal[i]);
    struct sigaction sa = {.sa_sigaction = on_fatal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&sa.sa_mask);
    for (int i = 0; i < NFATAL; i++) {
        sigaction(fatal[i], NULL, &before[i]); /* first: it may be needed at once */
        sigaction(fatal[i], &sa, NULL);
    }
}

/* The slot is going to be another's. */
void core_fault_disarm(void)
{
    store_rel(&M.m, NULL); /* pairs with on_fatal() */
}
