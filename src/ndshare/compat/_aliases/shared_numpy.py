"""Makes ``import shared_numpy`` mean `ndshare.compat.shared_numpy`."""

from ndshare.compat import install

install("shared_numpy")
