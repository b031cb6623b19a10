/* failpoint.c — in a build for tests, the place at which a process dies by name.
 *
 * A release build has nothing of it. Built with -DSHM_FAILPOINTS (README, Hacking), each
 * FAILPOINT("name") of shm/ comes here: MPGORT_FAILPOINT=name, or name:N for the N-th time, kills a
 * worker there with SIGKILL, as nothing else could stop it (M0 and the keeper are not counted). So
 * a program in Python can be shown a death at any store that matters; the C tests have their own
 * driver (tests/shm/harness.h). */
#include "core.h"
#ifdef SHM_FAILPOINTS
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static const char *asked = "";
static size_t n;
static long left;

/* From here on this process, a worker, dies where it was asked to. */
void core_failpoint_arm(void)
{
    const char *s = getenv("MPGORT_FAILPOINT");
    asked = s != NULL ? s : "";
    n = strcspn(asked, ":");
    left = asked[n] == ':' ? atol(asked + n + 1) : 1;
}

void shm_failpoint_hit(const char *name);
void shm_failpoint_hit(const char *name)
{
    if (n > 0 && strlen(name) == n && memcmp(name, asked, n) == 0 && --left == 0)
        raise(SIGKILL);
}
#else
void core_failpoint_arm(void) {}
#endif
