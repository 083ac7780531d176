"""torch's CUDA path without a GPU: a runtime and a driver that record what they are asked for and execute nothing.

``build.py`` builds the library and says how a process preloads it, ``child.py`` runs code in such a process,
``records.py`` reads what was recorded, ``vendor.py`` stands in for cuBLAS and cuDNN. ``ledger.py`` counts what one step
of the criterion launches. See README.md.
"""
