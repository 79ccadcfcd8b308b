"""Makes ``import contextshare`` mean `ndshare.compat.contextshare`."""

from ndshare.compat import install

install("contextshare")
