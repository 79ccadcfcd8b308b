"""Other libraries carry shared arrays: one module per library, which changes it only when told to.

`ndshare.integrations.multiprocessing` and `ndshare.integrations.joblib` each have `register`.
"""
