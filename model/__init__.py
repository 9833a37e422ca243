"""The networks, built from graphs, sizes and settings (`lib.interface`), and the record of each variant.

Nothing here opens a file, reads a configuration or knows a device, but for kernels, which are compiled for one.
"""
