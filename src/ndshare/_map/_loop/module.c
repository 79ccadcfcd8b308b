/* ndshare._map._loop: the inner loop of `map`, in C because it is paid for every item.
 *
 * items.c   one share: entries, kernel, done mask, slot
 * values.c  the values of a share that are taken by their index
 *
 * No state. Without the GIL: what a call of `run` reads and makes belongs to its thread; what it shares with others
 * are the kernel, the source and the items of both, which guard themselves, and the board, which is atomic.
 */
#include "extension.h"

#include "items.h"

static PyMethodDef methods[] = {
    {"run", NDSHARE_FAST(ndshare_items_run),
     PyDoc_STR("run(kernel, worker_id, source, by_index, board, slot, mask, first, count, timed)\n"
               "    -> (items, killed)\n\n"
               "Call the kernel for the entries of one share. `source` is indexed, or else an iterator of tuples.")},
    {"drop", ndshare_items_drop, METH_O,
     PyDoc_STR("drop(result)\n\nRefuse what a kernel has returned if nothing of the kernel has run for it.")},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *Py_UNUSED(module))
{
    import_array1(-1);
    return 0;
}

NDSHARE_EXTENSION(_loop, ndshare_loop_definition, Py_MOD_GIL_NOT_USED, module_exec,
                  .m_name = "ndshare._map._loop",
                  .m_doc = PyDoc_STR("The inner loop of map."),
                  .m_methods = methods)
