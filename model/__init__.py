"""The networks: nn.Modules with plain arguments. Nothing here opens a file, reads a configuration or knows a device."""
