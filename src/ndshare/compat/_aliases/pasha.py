"""Makes ``import pasha`` mean `ndshare.compat.pasha`."""

from ndshare.compat import install

install("pasha")
