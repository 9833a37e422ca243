"""From files to samples: series, windows, prepared files, sensor tables, graphs."""
