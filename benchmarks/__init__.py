"""Speed and memory, measured against plain references that live here and are written for reading, not for speed."""
