/* module.c — the one extension module, mpgort._core: it joins the parts and owns nothing else.
 *
 * Each part adds its own types, functions and constants in a core_<part>_init(); the order below is
 * the order of dependence. */
#include "proc.h"

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mpgort._core",
    .m_doc = "The compiled heart of mpgort: frames that move, and the M's loop.",
    .m_size = -1,
};

static int (*const parts[])(PyObject *) = {
    core_park_init,    core_codec_init,     core_error_init, core_pdeath_init,    core_prog_init,
    core_chan_init,    core_goroutine_init, core_spawn_init, core_group_init,     core_thread_init,
    core_select_init,  core_sync_init,      core_mutex_init, core_atomicint_init, core_map_init,
    core_timer_init,   core_ctxtree_init,   core_pool_init,  core_buffer_init,    core_gm_init,
    core_runtime_init, core_dump_init,      core_trace_init, core_guard_init,
};

PyMODINIT_FUNC PyInit__core(void)
{
    PyObject *mod = PyModule_Create(&core_module);
    if (mod == NULL)
        return NULL;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i](mod) < 0) {
            Py_DECREF(mod);
            return NULL;
        }
    return mod;
}
