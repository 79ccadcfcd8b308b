"""Other libraries carry shared arrays: one module per library, which changes it only when told to.

::

    register()  ─► multiprocessing   shared arrays by reference in queues, pipes, pools, managers
                ─► joblib            a backend on ndshare's workers: scikit-learn's n_jobs
    ndshare.Pool                     the interface of multiprocessing.Pool, on the workers of executors

Guarantees
----------
- Importing changes nothing; `ndshare.integrations.multiprocessing.unregister` undoes what `register` did.
- What a library promised before holds after: types, order, errors; ordinary arrays are copied as ever.

Not guaranteed
--------------
- Nothing of this reaches other machines.
"""
