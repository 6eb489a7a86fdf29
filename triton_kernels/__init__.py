"""Triton kernels. The only folder that imports triton."""

if __name__ == "triton_kernels":  # a bare import from the repository root would shadow another package's name
    raise ImportError("this folder is naiad.triton_kernels")
