/* ndshare._node._twin: what changed in a piece of memory since its twin was made, and bringing it elsewhere.
 *
 * runs.c  comparison, run lengths, merging
 *
 * No state. Without the GIL: buffers are held while they are read or written, and both are done without it in any
 * case; lengths are looked at as they are used, so bytes that others change meanwhile cost values, never memory.
 */
#include "extension.h"

#include "runs.h"

static PyMethodDef methods[] = {
    {"changes", NDSHARE_FAST(ndshare_twin_changes),
     PyDoc_STR("changes(new, old) -> (runs, data)\n\n"
               "Lengths of unchanged and changed stretches in turn, and the bytes of the changed ones. `old` is a "
               "buffer of the same length, or None for zeros.")},
    {"merge", NDSHARE_FAST(ndshare_twin_merge),
     PyDoc_STR("merge(target, runs, data) -> bytes\n\nWrite the changed stretches, and nothing else.")},
    {NULL, NULL, 0, NULL},
};

NDSHARE_EXTENSION(_twin, ndshare_twin_definition, Py_MOD_GIL_NOT_USED, ndshare_extension_plain,
                  .m_name = "ndshare._node._twin",
                  .m_doc = PyDoc_STR("What changed since a twin was made."),
                  .m_methods = methods)
