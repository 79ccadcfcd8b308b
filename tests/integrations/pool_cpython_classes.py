"""CPython's own test classes of pools of processes, in a module that workers can import them from."""

from __future__ import annotations

import importlib
from typing import Any

_theirs: Any = importlib.import_module("test._test_multiprocessing")
_theirs.install_tests_in_module_dict(globals(), "spawn", only_type="processes")
TestInitializers = _theirs.TestInitializers
setUpModule = tearDownModule = None  # theirs wait for children of the start method
