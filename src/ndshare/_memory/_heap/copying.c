/* One large copy by several threads: a single one reaches a part only of what the memory can do.
 *
 * The threads live as long as the call, have all signals blocked, touch neither Python nor the heap and take no
 * lock: a fork in the meantime finds nothing half done but the bytes, and the caller's Ctrl-C is the caller's.
 */
#define NO_IMPORT_ARRAY
#include "copying.h"

#include "array.h"
#include "segment.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

#define THREADS_MAX 8               /* beyond, the memory is what is waited for */
#define STACK ((size_t)64 << 10)    /* bytes: they call memcpy, nothing else */

typedef struct {
    char *target;
    const char *source;
    size_t nbytes;
} part;

static void *
copy_part(void *argument)
{
    const part *p = argument;
    memcpy(p->target, p->source, p->nbytes);
    return NULL;
}

static void
copy_all(char *target, const char *source, size_t nbytes, size_t threads)
{
    part parts[THREADS_MAX];
    pthread_t started[THREADS_MAX];
    pthread_attr_t attributes;
    sigset_t all, before;
    size_t length = (nbytes / threads + NDSHARE_PAGE - 1) & ~(NDSHARE_PAGE - 1), n = 0;

    bool several = threads > 1 && pthread_attr_init(&attributes) == 0;
    if (several) {
        pthread_attr_setstacksize(&attributes, STACK);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        for (; n + 1 < threads && nbytes > length; n++) {
            parts[n] = (part){target, source, length};
            if (pthread_create(&started[n], &attributes, copy_part, &parts[n]) != 0) {
                break;
            }
            target += length;
            source += length;
            nbytes -= length;
        }
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attributes);
    }
    memcpy(target, source, nbytes); /* the last part; with what nobody could be found for */
    while (n > 0) {
        pthread_join(started[--n], NULL);
    }
}

PyObject *
ndshare_copying_copy(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3 || !PyArray_Check(args[0]) || !PyArray_Check(args[1])) {
        return PyErr_Format(PyExc_TypeError, "copy takes two arrays and a number of threads");
    }
    PyArrayObject *target = (PyArrayObject *)args[0], *source = (PyArrayObject *)args[1];
    Py_ssize_t threads = PyLong_AsSsize_t(args[2]);
    if (threads == -1 && PyErr_Occurred()) {
        return NULL;
    }
    char *to, *from;
    size_t nbytes = ndshare_array_extent(source, &from);
    npy_intp strides[NPY_MAXDIMS];  /* backwards is as dense as forwards */
    for (int i = 0; i < PyArray_NDIM(source); i++) {
        strides[i] = Py_ABS(PyArray_STRIDE(source, i));
    }
    if (!ndshare_array_is_dense(PyArray_NDIM(source), PyArray_DIMS(source), strides, PyArray_ITEMSIZE(source))
        || ndshare_array_extent(target, &to) != nbytes || PyArray_NDIM(target) != PyArray_NDIM(source)
        || !PyArray_EquivTypes(PyArray_DESCR(target), PyArray_DESCR(source)) || !PyArray_ISWRITEABLE(target)
        || PyDataType_REFCHK(PyArray_DESCR(source)) || PyArray_DESCR(source)->type_num >= NPY_NTYPES_LEGACY) {
        Py_RETURN_FALSE;
    }
    for (int i = 0; i < PyArray_NDIM(source); i++) {
        if (PyArray_DIM(target, i) != PyArray_DIM(source, i)
            || PyArray_STRIDE(target, i) != PyArray_STRIDE(source, i)) {
            Py_RETURN_FALSE;
        }
    }
    if (to < from + nbytes && from < to + nbytes) {
        Py_RETURN_FALSE; /* NumPy knows in which order */
    }
    Py_BEGIN_ALLOW_THREADS
    copy_all(to, from, nbytes, threads < 1 ? 1 : threads > THREADS_MAX ? THREADS_MAX : (size_t)threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_TRUE;
}
