"""From raw files of Caltrans' Performance Measurement System (PeMS) to a data set: stations, raw files, series."""
