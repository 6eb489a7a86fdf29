"""The operations of runtime/ops.py, one file per kind of device."""
