"""Makes ``import SHMArrays`` mean `ndshare.compat.SHMArrays`."""

from ndshare.compat import install

install("SHMArrays")
