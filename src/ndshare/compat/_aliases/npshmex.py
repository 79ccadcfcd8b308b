"""Makes ``import npshmex`` mean `ndshare.compat.npshmex`."""

from ndshare.compat import install

install("npshmex")
