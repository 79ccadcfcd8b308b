/* Locks for the length of a block. */
#ifndef NDSHARE_DICT_HOLD_H
#define NDSHARE_DICT_HOLD_H

#include "dict.h"

extern PyType_Spec ndshare_hold_spec;

#endif
