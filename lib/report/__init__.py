"""Reports: tables, figures, pages, comparisons."""
