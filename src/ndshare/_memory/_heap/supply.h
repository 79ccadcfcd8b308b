/* Memory for a request, with one handle on it. Takes the lock. */
#ifndef NDSHARE_SUPPLY_H
#define NDSHARE_SUPPLY_H

#include "heap.h"

/* `in_handler`: NumPy asks and has a way out; it relies on the GIL, so nothing gives it up. */
ndshare_segment *ndshare_supply_whole(size_t nbytes, int kind, bool staged, bool in_handler, bool *fresh,
                                      ndshare_error *error);
ndshare_segment *ndshare_supply_shared(size_t nbytes, char **address, bool *dirty, bool in_handler,
                                       ndshare_error *error);

#endif
