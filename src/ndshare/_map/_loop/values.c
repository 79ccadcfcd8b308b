/* Values of a share by their index: of a range, of an array, of anything else that takes one.
 *
 * The scalar of an array's item is made anew only if somebody has kept the one before. Sizes and addresses
 * are read from the array for every item, because a kernel may change it in place.
 */
#define NO_IMPORT_ARRAY
#include "values.h"

#include <numpy/arrayscalars.h>
#include <stddef.h>
#include <string.h>

#define OBVAL offsetof(PyDoubleScalarObject, obval)

_Static_assert(offsetof(PyFloatScalarObject, obval) == OBVAL && offsetof(PyLongLongScalarObject, obval) == OBVAL
                   && offsetof(PyShortScalarObject, obval) == OBVAL && offsetof(PyByteScalarObject, obval) == OBVAL,
               "the value of a scalar lies where that of all others of its size or less does");

/* An iterator over some items of a range, or the range if it counts from 0 on, as most do; new reference. */
static PyObject *
iterate_range(PyObject *range, Py_ssize_t first, Py_ssize_t count)
{
    Py_ssize_t length = PyObject_Size(range);
    PyObject *plain = length < 0 ? NULL : PyObject_CallFunction((PyObject *)&PyRange_Type, "n", length);
    int equal = plain == NULL ? -1 : PyObject_RichCompareBool(range, plain, Py_EQ);
    Py_XDECREF(plain);
    if (equal < 0) {
        return NULL;
    }
    if (equal && first <= length && count <= length - first) {
        return Py_NewRef(range);
    }
    PyObject *part = PySequence_GetSlice(range, first, first + count);
    if (part == NULL) {
        return NULL;
    }
    PyObject *numbers = PyObject_GetIter(part);
    Py_DECREF(part);
    return numbers;
}

int
ndshare_values_open(ndshare_values *values, PyObject *source, Py_ssize_t first, Py_ssize_t count)
{
    *values = (ndshare_values){.source = source, .is_array = PyArray_CheckExact(source)};
    if (PyRange_Check(source)) {
        values->numbers = iterate_range(source, first, count);
        return values->numbers == NULL ? -1 : 0;
    }
    return 0;
}

/* Whether items of the array are numbers whose scalars are made here; their size. Others: 0. */
static size_t
number_size(PyArrayObject *array)
{
    PyArray_Descr *descr = PyArray_DESCR(array);
    if (PyArray_NDIM(array) != 1 || !PyArray_ISNOTSWAPPED(array)) {
        return 0;
    }
    switch (descr->type_num) {
    case NPY_BYTE:
    case NPY_UBYTE:
        return 1;
    case NPY_SHORT:
    case NPY_USHORT:
        return 2;
    case NPY_INT:
    case NPY_UINT:
    case NPY_FLOAT:
        return 4;
    case NPY_LONG:
    case NPY_ULONG:
        return sizeof(long);
    case NPY_LONGLONG:
    case NPY_ULONGLONG:
    case NPY_DOUBLE:
        return 8;
    default:
        return 0;
    }
}

/* The scalar of one item; NULL without an exception for arrays of something else. */
static PyObject *
number_at(ndshare_values *values, Py_ssize_t index)
{
    PyArrayObject *array = (PyArrayObject *)values->source;
    size_t size = number_size(array);
    if (size == 0 || index < 0 || index >= PyArray_DIM(array, 0)) {
        return NULL;
    }
    PyTypeObject *type = PyArray_DESCR(array)->typeobj;
    PyObject *scalar = values->spare;
    values->spare = NULL;
    if (scalar != NULL && Py_TYPE(scalar) != type) {
        Py_CLEAR(scalar);
    }
    if (scalar == NULL && (scalar = type->tp_alloc(type, 0)) == NULL) {
        return NULL;
    }
    values->made = scalar;
    memcpy((char *)scalar + OBVAL, PyArray_BYTES(array) + index * PyArray_STRIDE(array, 0), size);
    return scalar;
}

PyObject *
ndshare_values_at(ndshare_values *values, Py_ssize_t index, PyObject *number)
{
    PyObject *source = values->source, *numbers = values->numbers;
    if (numbers == source) {  /* each item is its index */
        return Py_NewRef(number);
    }
    if (numbers != NULL) {
        PyObject *value = Py_TYPE(numbers)->tp_iternext(numbers);
        if (value == NULL && !PyErr_Occurred()) {
            PyErr_Format(PyExc_IndexError, "the range has no item %zd", index);
        }
        return value;
    }
    if (values->is_array) {
        PyObject *value = number_at(values, index);
        if (value != NULL || PyErr_Occurred()) {
            return value;
        }
    }
    PySequenceMethods *sequence = Py_TYPE(source)->tp_as_sequence;
    if (sequence != NULL && sequence->sq_item != NULL) {  /* spares arrays the parsing of an index */
        return sequence->sq_item(source, index);
    }
    return PyObject_GetItem(source, number);
}

/* Whether nobody but this thread has the object, which nobody else can then get hold of. */
static bool
is_only_ours(PyObject *object)
{
#ifdef Py_GIL_DISABLED
    return object->ob_tid == _Py_ThreadId() && _Py_atomic_load_uint32_relaxed(&object->ob_ref_local) == 1
           && _Py_atomic_load_ssize_relaxed(&object->ob_ref_shared) == 0;
#else
    return Py_REFCNT(object) == 1;
#endif
}

void
ndshare_values_done(ndshare_values *values, PyObject *value)
{
    if (value == values->made && is_only_ours(value)) {
        values->spare = value;
    }
    else {
        Py_DECREF(value);
    }
    values->made = NULL;
}

void
ndshare_values_close(ndshare_values *values)
{
    Py_CLEAR(values->spare);
    Py_CLEAR(values->numbers);
}
