/* Where the bytes of an array lie. */
#define NO_IMPORT_ARRAY
#include "array.h"

size_t
ndshare_array_extent(PyArrayObject *array, char **low)
{
    char *start = PyArray_BYTES(array), *end = start + PyArray_ITEMSIZE(array);
    *low = start;
    if (PyArray_SIZE(array) == 0) {
        return 0;
    }
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        npy_intp reach = (PyArray_DIM(array, i) - 1) * PyArray_STRIDE(array, i);
        *(reach < 0 ? &start : &end) += reach;
    }
    *low = start;
    return (size_t)(end - start);
}

/* The address of an empty array may be the end of its block, which is the start of the neighbour: ask the array
 * that owns the memory instead. */
char *
ndshare_array_lowest(PyArrayObject *array)
{
    if (PyArray_SIZE(array) == 0) {
        PyObject *owner = (PyObject *)array;
        while (PyArray_BASE((PyArrayObject *)owner) != NULL && PyArray_Check(PyArray_BASE((PyArrayObject *)owner))) {
            owner = PyArray_BASE((PyArrayObject *)owner);
        }
        array = (PyArrayObject *)owner;
    }
    char *address = PyArray_BYTES(array);
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        npy_intp reach = (PyArray_DIM(array, i) - 1) * PyArray_STRIDE(array, i);
        address += reach < 0 && PyArray_DIM(array, i) > 0 ? reach : 0;
    }
    return address;
}

bool
ndshare_array_is_dense(int ndim, const npy_intp *shape, const npy_intp *strides, npy_intp itemsize)
{
    bool seen[NPY_MAXDIMS] = {false};
    npy_intp expected = itemsize;
    for (int done = 0; done < ndim; done++) {
        int next = -1;
        for (int i = 0; i < ndim; i++) {
            if (!seen[i] && (shape[i] == 1 || strides[i] == expected)) {
                next = i;
                if (shape[i] == 1) {
                    break;
                }
            }
        }
        if (next < 0) {
            return false;
        }
        seen[next] = true;
        expected *= shape[next];
    }
    return true;
}
