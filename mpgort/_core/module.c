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

PyMODINIT_FUNC PyInit__core(void)
{
    PyObject *mod = PyModule_Create(&core_module);
    if (mod == NULL)
        return NULL;
    if (core_frame_init(mod) < 0 || core_codec_init(mod) < 0 || core_prog_init(mod) < 0 ||
        core_proc_init(mod) < 0 || core_chan_init(mod) < 0 || core_goroutine_init(mod) < 0 ||
        core_group_init(mod) < 0 || core_select_init(mod) < 0 || core_timer_init(mod) < 0 ||
        core_ctxtree_init(mod) < 0 || core_runtime_init(mod) < 0 || core_dump_init(mod) < 0) {
        Py_DECREF(mod);
        return NULL;
    }
    return mod;
}
