/* ndshare._map._loop: the inner loop of `map`, in C because it is paid for every item.
 *
 * items.c   one share: entries, kernel, done mask, slot
 * values.c  the values of a share that are taken by their index
 *
 * No state.
 */
#include "extension.h"

#include "loop.h"

static PyMethodDef methods[] = {
    {"run", NDSHARE_FAST(ndshare_loop_run),
     PyDoc_STR("run(kernel, worker_id, source, by_index, board, slot, mask, first, count, timed)\n"
               "    -> (items, killed)\n\n"
               "Call the kernel for the entries of one share. `source` is indexed, or else an iterator of tuples.")},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *Py_UNUSED(module))
{
    import_array1(-1);
    return 0;
}

NDSHARE_EXTENSION(_loop, ndshare_loop_definition, Py_MOD_GIL_USED, module_exec,
                  .m_name = "ndshare._map._loop",
                  .m_doc = PyDoc_STR("The inner loop of map."),
                  .m_methods = methods)
