/* Store, the type. */
#ifndef NDSHARE_DICT_STORE_H
#define NDSHARE_DICT_STORE_H

#include "dict.h"

extern PyType_Spec ndshare_store_spec;

#endif
